//! Every shader in every variant, as WGSL, as naga's module, and as the Metal text that wgpu would hand to the driver.

use files::Format;
use naga::back::msl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use tidemill_kernels::gpu::source::{
    CONSTANTS_MAX, KERNELS, Kernel, METAL_MATRIX, Variant, WEIGHTS_MAX, split, wgsl, wide,
};

/// Versions of Metal's language that wgpu asks for, from macOS 11 on.
pub const VERSIONS: [(u8, u8); 6] = [(2, 3), (2, 4), (3, 0), (3, 1), (3, 2), (4, 0)];

/// A variant of a kernel, with or without operations of subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shader {
    pub variant: Variant,
    pub subgroups: bool,
}

/// What naga makes of a shader.
pub struct Parsed {
    pub module: naga::Module,
    pub info: ModuleInfo,
}

/// How a kernel steps through weights: the constants of these names.
#[derive(Clone, Copy, PartialEq)]
struct Step {
    tokens: u32,
    tail: u32,
    wide: u32,
    split: u32,
}

/// Values for the constants of a kernel.
fn constants(kernel: &Kernel, kv_format: u32, step: Step) -> [u32; CONSTANTS_MAX] {
    let Step { tokens, tail, wide, split } = step;
    let mut all = [0; CONSTANTS_MAX];
    for (slot, name) in all.iter_mut().zip(kernel.constants) {
        *slot = match *name {
            "TAIL" => tail,
            "TOKENS" => tokens,
            "WIDE" => wide,
            "SPLIT" if kernel.weights.is_empty() => 1,
            "SPLIT" => split,
            "LANES" if kernel.name == "attention" => 32,
            "LANES" => 8,
            "KERNEL" | "TOP_K" | "HEADS" => 4,
            "HEAD_DIM" | "KEY_DIM" => 128,
            "FOURS" => kv_format,
            "EXPERTS" => 512,
            "ROWS" => 128,
            "SPAN" => 32,
            "FORMAT" => kv_format,
            "SPANS_MAX" => 64,
            "MATRIX" => 16,
            _ => 1,
        };
    }
    all
}

/// Adds a variant with and without operations of subgroups, or with them alone where the kernel cannot do without.
fn add(all: &mut Vec<Shader>, kernel: &Kernel, variant: Variant) {
    all.push(Shader { variant, subgroups: true });
    if !has_matrices(kernel) {
        all.push(Shader { variant, subgroups: false });
    }
}

fn has_matrices(kernel: &Kernel) -> bool {
    kernel.source.contains("enable wgpu_cooperative_matrix")
}

/// All variants of a kernel with one format.
fn variants(all: &mut Vec<Shader>, kernel: &'static Kernel, format: Format) {
    let mut formats = [None; WEIGHTS_MAX];
    formats.iter_mut().zip(kernel.weights).for_each(|(slot, _)| *slot = Some(format));
    // Only floats have rows that are no multiple of eight.
    let tail = u32::from(matches!(format, Format::F32 | Format::F16 | Format::BF16));
    let kv_formats = match kernel.constants {
        constants if constants.contains(&"FORMAT") => 0..3,
        constants if constants.contains(&"FOURS") => 0..2,
        _ => 0..1,
    };
    // Loads of a step, with products of floats, and of integers that the kernel or another prepares.
    let mut steps = vec![Step { tokens: 4, tail, wide: 0, split: 0 }];
    if kernel.constants.contains(&"WIDE") {
        let (widths, split) = ([4, 8, 16].map(|alignment| wide(format, alignment) as u32), split(format));
        steps.extend(widths.iter().filter(|&&w| w > 0).flat_map(|&wide| {
            let floats = |tokens| Step { tokens, tail, wide, split: 0 };
            let integers = |tokens, tail| Step { tokens, tail, wide, split };
            [floats(1), floats(4), integers(1, tail), integers(8, 2)]
        }));
        steps.dedup();
    }
    for (kv_format, step) in kv_formats.flat_map(|f| steps.iter().map(move |&s| (f, s))) {
        let constants = constants(kernel, kv_format, step);
        let mut variant = Variant { name: kernel.name, formats, constants };
        add(all, kernel, variant);
        // Blocks for matrix instructions have several sizes, and so have matrices.
        if has_matrices(kernel) {
            let at = kernel.constants.iter().position(|name| *name == "MATRIX").expect("says their size");
            for (matrix, rows) in [(16, 64), (16, 32), (METAL_MATRIX, 64), (METAL_MATRIX, 32)] {
                (variant.constants[1], variant.constants[at]) = (rows, matrix);
                add(all, kernel, variant);
            }
        }
        // Kernels that serve a shared expert too do without one.
        if let Some(own) = kernel.weights.iter().position(|name| name.starts_with("shared_")) {
            let shared = kernel.constants.iter().position(|name| *name == "SHARED");
            variant.constants[shared.expect("says whether there is one")] = 0;
            variant.formats[own..].fill(None);
            add(all, kernel, variant);
        }
    }
}

/// Kernels with the largest constants that the ops let through: for what they want of a device.
fn largest(all: &mut Vec<Shader>) {
    let extremes: [(&str, &[(&str, u32)]); 9] = [
        ("heads", &[("HEAD_DIM", 1024)]),
        ("attention", &[("HEAD_DIM", 256), ("HEADS", 8)]),
        ("attention", &[("HEAD_DIM", 1024), ("HEADS", 2)]),
        ("attention_merge", &[("HEAD_DIM", 1024)]),
        ("delta_rule", &[("KEY_DIM", 1024), ("FOURS", 1)]),
        ("delta_rows", &[("KEY_DIM", 1024)]),
        ("route", &[("EXPERTS", 2048), ("TOP_K", 2048)]),
        ("expert_blocks", &[("EXPERTS", 2048), ("TOP_K", 2048)]),
        ("gate_up_routed", &[("EXPERTS", 256), ("TOP_K", 256)]),
    ];
    for (name, values) in extremes {
        let found = all.iter().find(|shader| shader.variant.name == name && shader.is_for_metal());
        let mut variant = found.expect("a kernel of ours").variant;
        let kernel = found.expect("a kernel of ours").kernel();
        for (constant, value) in values {
            let at = kernel.constants.iter().position(|known| known == constant);
            variant.constants[at.expect("a constant of the kernel")] = *value;
        }
        add(all, kernel, variant);
    }
}

/// Every shader there is.
pub fn all() -> Vec<Shader> {
    let mut all = Vec::new();
    for kernel in KERNELS {
        let formats = if kernel.weights.is_empty() { vec![Format::F32] } else { Format::all() };
        formats.into_iter().for_each(|format| variants(&mut all, kernel, format));
    }
    largest(&mut all);
    let mut seen = std::collections::HashSet::new();
    all.retain(|shader| seen.insert(*shader));
    all
}

impl Shader {
    pub fn kernel(&self) -> &'static Kernel {
        KERNELS.iter().find(|kernel| kernel.name == self.variant.name).expect("a kernel of ours")
    }

    /// Kernel, formats, constants and features, for messages and reports.
    pub fn name(&self) -> String {
        let kernel = self.kernel();
        let mut name = kernel.name.to_string();
        if let Some(format) = self.variant.formats[0] {
            name += &format!(" {format}");
        }
        for (constant, value) in kernel.constants.iter().zip(self.variant.constants) {
            name += &format!(" {constant}={value}");
        }
        name + if self.subgroups { " subgroups" } else { "" }
    }

    /// Whether a device of Metal can get it: products of integers, and matrices of 16 x 16, are Vulkan's alone.
    pub fn is_for_metal(&self) -> bool {
        let has = |name| self.constant(name) != 0;
        let of_integers = self.variant.name == "integers" || has("SPLIT") && has("TOKENS");
        !of_integers && (!has_matrices(self.kernel()) || self.constant("MATRIX") == METAL_MATRIX)
    }

    /// The value of a constant, 0 for one that the kernel does not have.
    pub fn constant(&self, name: &str) -> u32 {
        let known = self.kernel().constants.iter().position(|constant| *constant == name);
        known.map_or(0, |at| self.variant.constants[at])
    }

    pub fn wgsl(&self) -> String {
        wgsl(self.kernel(), &self.variant, self.subgroups)
    }

    /// Parses and validates as wgpu does.
    pub fn parse(&self) -> Parsed {
        self.parse_text(&self.wgsl())
    }

    /// The same for another text in its place.
    pub fn parse_text(&self, source: &str) -> Parsed {
        let what = self.name();
        let module = naga::front::wgsl::parse_str(source)
            .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(source)));
        let mut capabilities =
            Capabilities::IMMEDIATES | Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        if has_matrices(self.kernel()) {
            capabilities |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
        }
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(source)));
        Parsed { module, info }
    }

    /// How each binding is used: `r` reads, `w` writes too.
    pub fn access(&self) -> String {
        let mut access = self.kernel().access.to_string();
        for format in self.variant.formats.iter().flatten() {
            access.extend(std::iter::repeat_n('r', format.parts()));
        }
        access
    }

    /// The Metal text of a module, with the options that wgpu-hal gives naga for trusted modules: no checks of
    /// bounds, immediates in slot 0, the bindings after them, sizes of buffers last.
    pub fn msl(&self, parsed: &Parsed, lang_version: (u8, u8)) -> String {
        let access = self.access();
        let mut resources = msl::EntryPointResources {
            immediates_buffer: Some(0),
            sizes_buffer: Some(1 + access.len() as u8),
            ..Default::default()
        };
        for (i, access) in access.chars().enumerate() {
            let target =
                msl::BindTarget { buffer: Some(1 + i as u8), mutable: access == 'w', ..Default::default() };
            resources.resources.insert(naga::ResourceBinding { group: 0, binding: i as u32 }, target);
        }
        let unchecked = BoundsCheckPolicy::Unchecked;
        let options = msl::Options {
            lang_version,
            inline_samplers: Default::default(),
            spirv_cross_compatibility: false,
            fake_missing_bindings: false,
            per_entry_point_map: msl::EntryPointResourceMap::from([("main".to_owned(), resources)]),
            bounds_check_policies: BoundsCheckPolicies {
                index: unchecked,
                buffer: unchecked,
                image_load: unchecked,
                binding_array: unchecked,
            },
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            task_dispatch_limits: None,
            mesh_shader_primitive_indices_clamp: false,
            emit_int_div_checks: false,
            ray_query_initialization_tracking: false,
        };
        let entry_point = Some((naga::ShaderStage::Compute, "main".to_owned()));
        let (module, info) = naga::back::pipeline_constants::process_overrides(
            &parsed.module,
            &parsed.info,
            entry_point.as_ref().map(|(stage, name)| (*stage, name.as_str())),
            &Default::default(),
        )
        .unwrap_or_else(|e| panic!("{}: {e}", self.name()));
        let pipeline =
            msl::PipelineOptions { entry_point, vertex_pulling_transform: true, ..Default::default() };
        let written = msl::write_string(&module, &info, &options, &pipeline);
        written.unwrap_or_else(|e| panic!("{}: {e}", self.name())).0
    }
}

impl Parsed {
    /// Threadgroup memory that Metal is asked for: each variable that the kernel uses, in steps of 16 bytes.
    pub fn threadgroup_bytes(&self) -> u32 {
        let used = self.info.get_entry_point(0);
        let variables = self.module.global_variables.iter();
        variables
            .filter(|(handle, v)| v.space == naga::AddressSpace::WorkGroup && !used[*handle].is_empty())
            .map(|(_, v)| self.module.types[v.ty].inner.size(self.module.to_ctx()).next_multiple_of(16))
            .sum()
    }
}
