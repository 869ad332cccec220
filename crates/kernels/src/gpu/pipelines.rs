//! Compiled shaders and binding layouts, made ahead ([`super::prepare`]) or on first use, and kept.

use std::collections::HashMap;
use std::sync::Arc;

use files::{Format, Result};

use super::device::Device;
use super::source::{CONSTANTS_MAX, Kernel, Variant, WEIGHTS_MAX, wgsl};
use super::stored::Stored;

/// Most bytes of parameters of a dispatch; every Vulkan and Metal device has them.
pub(super) const IMMEDIATE_BYTES_MAX: u32 = 128;

/// A compiled shader.
pub(super) struct Pipeline {
    pub(super) name: &'static str,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Pipelines with equal layouts share bind groups.
    pub(super) layout_id: usize,
}

/// All pipelines of a device.
pub(super) struct Pipelines {
    compiled: HashMap<Variant, Arc<Pipeline>>,
    layouts: Vec<(String, wgpu::BindGroupLayout)>,
    /// What the driver remembers of earlier runs.
    pub(super) stored: Stored,
}

/// What it takes to compile a variant.
pub(super) struct Plan {
    kernel: &'static Kernel,
    variant: Variant,
    layout: wgpu::BindGroupLayout,
    layout_id: usize,
    cache: Option<wgpu::PipelineCache>,
}

/// The variant of `kernel` for formats and constants.
pub(super) fn variant(kernel: &Kernel, formats: &[Format], constants: &[u32]) -> Variant {
    let mut all = Variant { name: kernel.name, formats: [None; WEIGHTS_MAX], constants: [0; CONSTANTS_MAX] };
    for (slot, format) in all.formats.iter_mut().zip(formats) {
        *slot = Some(*format);
    }
    all.constants[..constants.len()].copy_from_slice(constants);
    all
}

impl Plan {
    /// Compiles it.
    ///
    /// # Errors
    /// `Device` with the driver's message.
    pub(super) fn compile(&self, device: &Device) -> Result<Pipeline> {
        let Self { kernel, variant, layout, layout_id, cache } = self;
        let source = wgsl(kernel, variant, device.subgroups);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // SAFETY: the shaders are ours; every index in them is bounded by shapes that `check` has compared with the
        // buffers, or by tables that this module writes, and buffers are padded for loads of whole words.
        let module = unsafe {
            device.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let pipeline_layout = device.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(layout)],
            immediate_size: IMMEDIATE_BYTES_MAX,
        });
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: cache.as_ref(),
        });
        device.check().map_err(|e| e.context(format!("shader {}", kernel.name)))?;
        Ok(Pipeline { name: kernel.name, pipeline, layout: layout.clone(), layout_id: *layout_id })
    }

    /// What it compiles.
    pub(super) fn variant(&self) -> Variant {
        self.variant
    }
}

impl Pipelines {
    /// None yet.
    pub(super) fn new(stored: Stored) -> Self {
        Self { compiled: HashMap::new(), layouts: Vec::new(), stored }
    }

    /// The pipeline of a variant, compiled if it is new.
    pub(super) fn get(
        &mut self,
        device: &Device,
        kernel: &'static Kernel,
        variant: Variant,
    ) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.compiled.get(&variant) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.plan(device, kernel, variant).compile(device)?;
        Ok(self.keep(variant, pipeline))
    }

    /// Whether a variant is compiled.
    pub(super) fn has(&self, variant: &Variant) -> bool {
        self.compiled.contains_key(variant)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.compiled.len()
    }

    /// Keeps what was compiled.
    pub(super) fn keep(&mut self, variant: Variant, pipeline: Pipeline) -> Arc<Pipeline> {
        self.compiled.entry(variant).or_insert_with(|| Arc::new(pipeline)).clone()
    }

    /// What compiling a variant takes.
    pub(super) fn plan(&mut self, device: &Device, kernel: &'static Kernel, variant: Variant) -> Plan {
        let mut access = kernel.access.to_string();
        for format in variant.formats.iter().flatten() {
            access.extend(std::iter::repeat_n('r', format.parts()));
        }
        let layout_id = self.layout(device, &access);
        let layout = self.layouts[layout_id].1.clone();
        Plan { kernel, variant, layout, layout_id, cache: self.stored.cache() }
    }

    /// The layout for buffers used as `access` says; its index.
    fn layout(&mut self, device: &Device, access: &str) -> usize {
        if let Some(id) = self.layouts.iter().position(|(known, _)| known == access) {
            return id;
        }
        let entries: Vec<_> = access
            .chars()
            .enumerate()
            .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: access == 'r' },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = device.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(access),
            entries: &entries,
        });
        self.layouts.push((access.to_string(), layout));
        self.layouts.len() - 1
    }
}
