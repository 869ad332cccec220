//! Shader sources: a kernel's WGSL is put together from the prelude, the reductions, the decoders of its weights'
//! formats, and its own file.

use std::fmt::Write as _;

use files::{Format, ScaleType};

use super::units;
pub use super::units::METAL_MATRIX;
use crate::ops::PAGE;

/// One of our compute shaders, before it is specialised.
#[derive(Debug)]
pub struct Kernel {
    /// File name, and name in errors.
    pub name: &'static str,
    /// Its own WGSL.
    pub source: &'static str,
    /// How it uses each buffer binding before the weights: `r` reads, `w` reads and writes.
    pub access: &'static str,
    /// Names of the weights that it decodes; each brings its parts as further bindings.
    pub weights: &'static [&'static str],
    /// Names of the constants that specialise it.
    pub constants: &'static [&'static str],
    /// Threads of a workgroup.
    pub threads: u32,
    /// WGSL that it has in common with other kernels, by file name.
    pub parts: &'static [&'static str],
}

/// WGSL that several kernels have in common.
const SHARED_PARTS: [(&str, &str); 7] = [
    ("norm_row", include_str!("shaders/norm_row.wgsl")),
    ("ranks", include_str!("shaders/ranks.wgsl")),
    ("rows", include_str!("shaders/rows.wgsl")),
    ("segments", include_str!("shaders/segments.wgsl")),
    ("linears_body", include_str!("shaders/linears_body.wgsl")),
    ("gate_up_body", include_str!("shaders/gate_up_body.wgsl")),
    (UNITS, include_str!("shaders/units.wgsl")),
];

/// The part of kernels with matrix instructions.
const UNITS: &str = "units";

/// Most constants of a kernel.
pub const CONSTANTS_MAX: usize = 9;
/// Most weights of a kernel.
pub const WEIGHTS_MAX: usize = 4;

/// The constant TAIL of products whose activations `integers.wgsl` has prepared.
pub(super) const PREPARED: u32 = 2;

/// What makes one pipeline different from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// [`Kernel::name`]
    pub name: &'static str,
    /// A format for each of [`Kernel::weights`]; `None` for one that the pipeline goes without.
    pub formats: [Option<Format>; WEIGHTS_MAX],
    /// A value for each of [`Kernel::constants`].
    pub constants: [u32; CONSTANTS_MAX],
}

macro_rules! parts {
    () => {
        &[]
    };
    ($parts:tt) => {
        &$parts
    };
}

macro_rules! kernels {
    ($($id:ident = $name:literal $access:literal weights $weights:tt constants $constants:tt threads $threads:literal
        $(parts $parts:tt)?;)*) => {
        $(pub(super) const $id: Kernel = Kernel {
            name: $name,
            source: include_str!(concat!("shaders/", $name, ".wgsl")),
            access: $access,
            weights: &$weights,
            constants: &$constants,
            threads: $threads,
            parts: parts!($($parts)?),
        };)*
        /// Every kernel there is.
        pub const KERNELS: &[Kernel] = &[$($id),*];
    };
}

kernels! {
    EMBED = "embed" "rw" weights ["w"] constants [] threads 64;
    RMS_NORM = "rms_norm" "rrw" weights [] constants ["FOURS"] threads 512 parts ["norm_row"];
    ADD_NORM = "add_norm" "rrww" weights [] constants ["FOURS"] threads 512 parts ["norm_row"];
    LINEAR = "linear" "rrw" weights ["w"]
        constants ["TOKENS", "TAIL", "LANES", "WIDE", "SPLIT"] threads 256;
    LINEARS = "linears" "rwwww" weights ["w"]
        constants ["TOKENS", "TAIL", "LANES", "WIDE", "SPLIT"] threads 256 parts ["linears_body"];
    LINEARS_CONV = "linears_conv" "rwwwwrwr" weights ["w"]
        constants ["TOKENS", "TAIL", "LANES", "WIDE", "SPLIT", "KERNEL"] threads 256 parts ["segments", "linears_body"];
    INTEGERS = "integers" "rw" weights [] constants ["SPLIT", "LANES"] threads 256;
    MATMUL = "matmul" "rrrw" weights ["w"] constants ["GATHER", "TAIL"] threads 256;
    HALVES = "halves" "rw" weights [] constants ["SPLIT", "TAIL"] threads 256;
    MATMUL_UNITS = "matmul_units" "rrrw" weights ["w"] constants ["SCATTER", "ROWS", "WIDE", "FOURS", "MATRIX"] threads 128
        parts ["units"];
    GATE_UP_UNITS = "gate_up_units" "rrw" weights ["gate", "up"] constants ["DOWN_SPLIT", "ROWS", "WIDE", "MATRIX"] threads 128
        parts ["units"];
    EXPERT_BLOCKS = "expert_blocks" "rrw" weights [] constants ["EXPERTS", "TOP_K", "ROWS"] threads 256;
    ADD = "add" "wr" weights [] constants [] threads 64;
    GATHER_ROWS = "gather_rows" "rrw" weights [] constants [] threads 64;
    BEST = "best" "rw" weights [] constants [] threads 512;
    HEADS = "heads" "wrrrrrwwr" weights [] constants ["HEAD_DIM", "NORMS", "INTERLEAVED", "FORMAT"] threads 64
        parts ["rows"];
    ATTENTION = "attention" "rrrwwr" weights [] constants ["HEAD_DIM", "FORMAT", "GATED", "HEADS", "LANES"] threads 128
        parts ["rows"];
    ATTENTION_MERGE = "attention_merge" "rrwr" weights [] constants ["HEAD_DIM", "GATED", "SPANS_MAX"] threads 128
        parts ["rows"];
    SHORT_CONV = "short_conv" "rrwwr" weights [] constants ["KERNEL", "SPAN"] threads 64 parts ["segments"];
    DELTA_RULE = "delta_rule" "rrrrrrrrwwr" weights [] constants ["KEY_DIM", "TILED", "GATED", "FOURS"] threads 256
        parts ["segments"];
    DELTA_ROWS = "delta_rows" "rrrrrrwwr" weights [] constants ["KEY_DIM", "TILED", "LANES"] threads 128
        parts ["segments"];
    GATED_NORM = "gated_norm" "wrr" weights [] constants [] threads 64;
    ROUTE = "route" "rrwww" weights [] constants ["EXPERTS", "TOP_K", "NORMALISE", "TILES"] threads 256
        parts ["ranks"];
    EXPERT_TILES = "expert_tiles" "rrw" weights [] constants [] threads 64;
    GATE_UP = "gate_up" "rrw" weights ["gate", "up", "shared_gate", "shared_up"]
        constants ["TOKENS", "TAIL", "LANES", "WIDE", "SPLIT", "SHARED"] threads 256 parts ["gate_up_body"];
    GATE_UP_ROUTED = "gate_up_routed" "rwwrrww" weights ["gate", "up", "shared_gate", "shared_up"]
        constants ["TOKENS", "TAIL", "LANES", "WIDE", "SPLIT", "SHARED", "EXPERTS", "TOP_K", "NORMALISE"] threads 256
        parts ["ranks", "gate_up_body"];
    DOWN = "down" "rrww" weights ["down", "shared_down"]
        constants ["TOKENS", "TAIL", "LANES", "WIDE", "SPLIT", "SHARED"] threads 256;
    ACTIVATE = "activate" "wr" weights [] constants [] threads 64;
    COMBINE_NORM = "combine_norm" "rrrrrww" weights [] constants ["TOP_K", "SHARED", "FOURS"] threads 512
        parts ["norm_row"];
    STREAM = "stream" "rw" weights [] constants ["EACH", "COPY"] threads 256;
    COMBINE = "combine" "rrrrw" weights [] constants ["SHARED"] threads 64;
    ADD_WINDOW = "add_window" "rrw" weights [] constants [] threads 64;
    TALLY = "tally" "w" weights [] constants [] threads 1;
}

/// Where the packed values of a weight start, as far as loads care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wide {
    /// Anywhere: eight values at a time, byte-aligned.
    Not = 0,
    /// At a multiple of 16 bytes: thirty-two values a step, in vectors.
    Vectors = 1,
    /// At a multiple of 8 bytes: thirty-two values a step, in pairs of words. What safetensors files promise.
    Pairs = 2,
    /// At a multiple of 4 bytes: thirty-two values a step, word by word.
    Words = 3,
}

/// How weights of a format whose parts start at multiples of `alignment` bytes (a power of two; scales and biases of their
/// own at even ones if it is not 1) are loaded thirty-two at a time.
pub fn wide(format: Format, alignment: u32) -> Wide {
    match format {
        Format::Affine { bits: 4 | 8, .. } | Format::Q4K => match alignment {
            16.. => Wide::Vectors,
            8.. => Wide::Pairs,
            4.. => Wide::Words,
            _ => Wide::Not,
        },
        Format::Q4_0 | Format::Q8_0 | Format::Q6K if alignment >= 2 => Wide::Vectors,
        _ => Wide::Not,
    }
}

/// Where the columns of a step of [`wide`] are: half b so many columns after half a, or 1 if they alternate. Products
/// of integers have it as their constant SPLIT, which is 0 for products of floats.
pub fn split(format: Format) -> u32 {
    match format {
        Format::Affine { bits: 4, .. } => 1,
        Format::Q4K => 32,
        Format::Q6K => 64,
        _ => 16,
    }
}

/// The value of a constant, 0 for a kernel that has none of that name.
fn constant(kernel: &Kernel, variant: &Variant, name: &str) -> u32 {
    kernel.constants.iter().zip(variant.constants).find(|(c, _)| **c == name).map_or(0, |(_, value)| value)
}

/// The whole WGSL of a kernel for a variant; with `subgroups`, reductions use subgroup operations.
pub fn wgsl(kernel: &Kernel, variant: &Variant, subgroups: bool) -> String {
    // Directives stand before everything else.
    let enables = kernel.source.lines().take_while(|line| line.starts_with("enable "));
    let (directives, own) = kernel.source.split_at(enables.map(|line| line.len() + 1).sum());
    let shared = SHARED_PARTS.iter().filter(|(name, _)| kernel.parts.contains(name)).map(|(_, text)| *text);
    let mut body: String = std::iter::once(own).chain(shared).collect();
    if kernel.parts.contains(&UNITS) {
        let has_ones = kernel.constants.contains(&"FOURS") && constant(kernel, variant, "FOURS") == 0;
        let shape = units::Shape {
            rows: constant(kernel, variant, "ROWS") as usize,
            matrix: constant(kernel, variant, "MATRIX") as usize,
            values: if has_ones { 1 } else { 4 },
        };
        body = units::written_out(&body, shape);
        body.push_str(WIDE);
    }
    let mut out = format!("{directives}const THREADS = {}u;\n", kernel.threads);
    for (name, value) in kernel.constants.iter().zip(variant.constants) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "const {name} = {value}u;");
    }
    out.push_str(include_str!("shaders/prelude.wgsl"));
    // A kernel that takes no workgroup's arguments reduces nothing, and wants the shared memory for itself.
    if body.contains("$WORKGROUP_SETUP") {
        out.push_str(if subgroups {
            include_str!("shaders/workgroup_subgroup.wgsl")
        } else {
            include_str!("shaders/workgroup_plain.wgsl")
        });
    }
    if kernel.constants.contains(&"LANES") {
        out.push_str(if subgroups {
            include_str!("shaders/lanes_subgroup.wgsl")
        } else {
            include_str!("shaders/lanes_plain.wgsl")
        });
    }
    if kernel.constants.contains(&"TOKENS") {
        out.push_str(&sums(constant(kernel, variant, "TOKENS"), subgroups));
    }
    if kernel.constants.contains(&"FOURS") {
        out.push_str(if constant(kernel, variant, "FOURS") == 1 {
            include_str!("shaders/values_four.wgsl")
        } else {
            include_str!("shaders/values_one.wgsl")
        });
    }
    if kernel.constants.contains(&"TAIL") {
        out.push_str(match constant(kernel, variant, "TAIL") {
            1 => include_str!("shaders/x_tail.wgsl"),
            PREPARED => include_str!("shaders/x_prepared.wgsl"),
            _ => include_str!("shaders/x_whole.wgsl"),
        });
    }
    out.push_str(&activations(kernel, variant));
    out.push_str(&weights(kernel, variant));
    let arguments = if subgroups {
        "@builtin(local_invocation_index) t: u32, @builtin(subgroup_id) sg_id: u32, \
         @builtin(subgroup_invocation_id) sg_lane: u32, @builtin(num_subgroups) sg_count: u32, \
         @builtin(subgroup_size) sg_size: u32"
    } else {
        "@builtin(local_invocation_index) t: u32"
    };
    let setup = if subgroups { "subgroup = vec4<u32>(sg_id, sg_lane, sg_count, sg_size);" } else { "" };
    let known =
        [("$WORKGROUP_ARGUMENTS", arguments), ("$WORKGROUP_SETUP", setup), ("$PAGE", &format!("{PAGE}u"))];
    out.push_str(&known.iter().fold(body, |body, (name, value)| body.replace(name, value)));
    if kernel.constants.contains(&"TOKENS") {
        out = unrolled(&out, constant(kernel, variant, "TOKENS"));
    }
    out
}

/// Loops over TOKENS, written out: an array whose indices are known lies in registers, and not every driver's compiler
/// makes them known. Such a loop ends at the next line with nothing but a brace at its own indentation.
fn unrolled(text: &str, tokens: u32) -> String {
    const LOOP: &str = "for (var i = 0u; i < TOKENS; i++) {\n";
    let Some((before, rest)) = text.split_once(LOOP) else { return text.into() };
    let indentation = before.rsplit('\n').next().unwrap_or_default();
    let end = format!("\n{indentation}}}\n");
    let Some((body, after)) = rest.split_once(&end) else { return text.into() };
    let each = |i| format!("{{\n{indentation}    const i = {i}u;\n{body}{end}{indentation}");
    let all: String = (0..tokens).map(each).collect();
    format!("{before}{all}\n{}", unrolled(after, tokens))
}

/// What adds up the sums of TOKENS rows that LANES threads have.
fn sums(tokens: u32, subgroups: bool) -> String {
    let share = "// Threads that end up with the same sums.\nconst SHARE = LANES / TOKENS;\n\n";
    if !subgroups {
        return share.to_string() + include_str!("shaders/sums_plain.wgsl");
    }
    // Written out, as loops over TOKENS are.
    let mut halvings = String::new();
    let mut half = tokens / 2;
    while half > 0 {
        halvings.push_str("    step /= 2u;\n");
        for i in 0..half {
            let (a, b) = (format!("(*sums)[{i}]"), format!("(*sums)[{}]", i + half));
            let is_upper = "(position & step) != 0u";
            let given = format!("subgroupShuffleXor(select({b}, {a}, {is_upper}), step)");
            let _ = writeln!(halvings, "    {a} = select({a}, {b}, {is_upper}) + {given};");
        }
        half /= 2;
    }
    share.to_string() + &include_str!("shaders/sums_subgroup.wgsl").replace("$HALVINGS\n", &halvings)
}

/// Bindings, loads and decoders of a kernel's weights, and its steps through them.
fn weights(kernel: &Kernel, variant: &Variant) -> String {
    let mut out = String::new();
    let on_units = kernel.parts.contains(&UNITS);
    let steps = kernel.constants.contains(&"TOKENS");
    let wide = constant(kernel, variant, "WIDE");
    let mut binding = kernel.access.len();
    for (name, format) in kernel.weights.iter().zip(variant.formats) {
        let Some(format) = format else {
            if steps {
                out.push_str(&include_str!("shaders/step_none.wgsl").replace("$W", name));
            }
            continue;
        };
        out.push_str(&weight(name, format, binding, wide, on_units));
        binding += format.parts();
        if steps {
            let step = match wide {
                0 => include_str!("shaders/step_eight.wgsl"),
                _ => include_str!("shaders/step_wide.wgsl"),
            };
            out.push_str(&step.replace("$W_SPLIT", &format!("{}u", split(format))).replace("$W", name));
        }
        if on_units {
            let load = match wide {
                0 => include_str!("shaders/halves_eight.wgsl"),
                _ => include_str!("shaders/halves_wide.wgsl"),
            };
            out.push_str(&load.replace("$W", name));
        }
    }
    out
}

/// What goes with decoders of thirty-two values at a time.
const WIDE: &str = include_str!("shaders/wide.wgsl");

/// What products need of their activations, and the kernel that prepares those.
fn activations(kernel: &Kernel, variant: &Variant) -> String {
    const WORDS: &str = include_str!("shaders/x_words.wgsl");
    const INTEGERS: &str = include_str!("shaders/x_integers.wgsl");
    const AS_IT_IS: &str = include_str!("shaders/x_as_it_is.wgsl");
    let constant = |name| constant(kernel, variant, name);
    let has_one_scale = |format: &Format| matches!(format, Format::Q4_0 | Format::Q8_0);
    let dot32 = match variant.formats.iter().flatten().all(has_one_scale) {
        true => include_str!("shaders/dot32_one.wgsl"),
        false => include_str!("shaders/dot32_two.wgsl"),
    };
    if !kernel.constants.contains(&"SPLIT") {
        return String::new();
    }
    if !kernel.constants.contains(&"WIDE") {
        return if kernel.constants.contains(&"LANES") { [WIDE, WORDS].concat() } else { WIDE.into() };
    }
    match (constant("WIDE"), constant("SPLIT"), constant("TAIL")) {
        (0, ..) => AS_IT_IS.into(),
        (_, 0, _) => [WIDE, AS_IT_IS, include_str!("shaders/x_floats.wgsl")].concat(),
        (_, _, PREPARED) => [WIDE, AS_IT_IS, INTEGERS, dot32].concat(),
        _ => [WIDE, WORDS, INTEGERS, dot32, include_str!("shaders/x_in_workgroup.wgsl")].concat(),
    }
}

/// Bindings, loads and decoder of one weight.
fn weight(name: &str, format: Format, first_binding: usize, wide: u32, on_units: bool) -> String {
    let mut out = String::new();
    for part in 0..format.parts() {
        let binding = first_binding + part;
        let name = format!("{name}_{part}");
        let odd = matches!(format, Format::Q8_0 | Format::Q6K) || format == Format::Q4_0 && !on_units;
        let whole = part == 0 && !odd;
        let (item, word, quad) = if whole && wide == Wide::Vectors as u32 {
            ("vec4<u32>", "[i >> 2u][i & 3u]", format!("{name}[i >> 2u]"))
        } else if whole && wide == Wide::Pairs as u32 {
            let quad = format!("vec4<u32>({name}[i >> 1u], {name}[(i >> 1u) + 1u])");
            ("vec2<u32>", "[i >> 1u][i & 1u]", quad)
        } else {
            ("u32", "[i]", format!("vec4<u32>({name}[i], {name}[i + 1u], {name}[i + 2u], {name}[i + 3u])"))
        };
        let _ = writeln!(out, "@group(0) @binding({binding}) var<storage, read> {name}: array<{item}>;");
        let _ = writeln!(out, "fn {name}_word(i: u32) -> u32 {{\n    return {name}{word};\n}}");
        let _ = writeln!(out, "fn {name}_quad(i: u32) -> vec4<u32> {{\n    return {quad};\n}}");
        let bytes = match part > 0 && wide != 0 {
            true => include_str!("shaders/halfwords.wgsl"),
            false => include_str!("shaders/bytes.wgsl"),
        };
        out.push_str(&bytes.replace("$W_PART", &name));
        if let Format::Affine { scale, .. } = format {
            out.push_str(&scale_load(&name, scale));
        }
    }
    let mut decoder = if wide == 0 { decoder(format) } else { wide_decoder(format) };
    if format == Format::Q4_0 && wide != 0 {
        decoder.push_str(match on_units {
            true => include_str!("shaders/formats/q4_0_quads.wgsl"),
            false => include_str!("shaders/formats/q4_0_words.wgsl"),
        });
    }
    out.push_str(&decoder.replace("$W", name));
    out
}

/// `$W_raw(base, n, chunk, cols)` loads thirty-two values of row n, `$W_wide` opens them; empty where [`wide`] says
/// that a format has none.
fn wide_decoder(format: Format) -> String {
    match format {
        Format::Affine { bits: 4, group, scale } => {
            affine(include_str!("shaders/formats/affine4_wide.wgsl"), 4, group, scale)
        }
        Format::Affine { bits: 8, group, scale } => {
            affine(include_str!("shaders/formats/affine8_wide.wgsl"), 8, group, scale)
        }
        Format::Q4_0 => include_str!("shaders/formats/q4_0_wide.wgsl").into(),
        Format::Q8_0 => include_str!("shaders/formats/q8_0_wide.wgsl").into(),
        Format::Q4K => include_str!("shaders/formats/q4k_wide.wgsl").into(),
        Format::Q6K => include_str!("shaders/formats/q6k_wide.wgsl").into(),
        _ => String::new(),
    }
}

fn affine(text: &str, bits: u8, group: u8, scale: ScaleType) -> String {
    text.replace("$BITS", &bits.to_string())
        .replace("$GROUP", &group.to_string())
        .replace("$SCALE_BYTES", &scale.bytes().to_string())
}

/// A load of one scale or bias.
fn scale_load(part: &str, scale: ScaleType) -> String {
    let value = match scale {
        ScaleType::F32 => format!("bitcast<f32>({part}_u32(at))"),
        ScaleType::F16 => format!("f16_value({part}_u16(at))"),
        ScaleType::BF16 => format!("bf16_value({part}_u16(at))"),
    };
    format!("fn {part}_scale(at: u32) -> f32 {{\n    return {value};\n}}\n")
}

/// `$W_eight(base, n, k, cols)`: values k .. k + 8 of row n, k a multiple of eight.
fn decoder(format: Format) -> String {
    const K_SCALES: &str = include_str!("shaders/formats/k_scales.wgsl");
    match format {
        Format::F32 => include_str!("shaders/formats/f32.wgsl").into(),
        Format::F16 => include_str!("shaders/formats/f16.wgsl").into(),
        Format::BF16 => include_str!("shaders/formats/bf16.wgsl").into(),
        Format::Affine { bits, group, scale } => {
            affine(include_str!("shaders/formats/affine.wgsl"), bits, group, scale)
        }
        Format::Q4_0 => include_str!("shaders/formats/q4_0.wgsl").into(),
        Format::Q4_1 => include_str!("shaders/formats/q4_1.wgsl").into(),
        Format::Q5_0 => include_str!("shaders/formats/q5_0.wgsl").into(),
        Format::Q5_1 => include_str!("shaders/formats/q5_1.wgsl").into(),
        Format::Q8_0 => include_str!("shaders/formats/q8_0.wgsl").into(),
        Format::Q2K => include_str!("shaders/formats/q2k.wgsl").into(),
        Format::Q3K => include_str!("shaders/formats/q3k.wgsl").into(),
        Format::Q4K => K_SCALES.to_string() + include_str!("shaders/formats/q4k.wgsl"),
        Format::Q5K => K_SCALES.to_string() + include_str!("shaders/formats/q5k.wgsl"),
        Format::Q6K => include_str!("shaders/formats/q6k.wgsl").into(),
        Format::IQ4NL => include_str!("shaders/formats/iq4nl.wgsl").into(),
        Format::IQ4XS => include_str!("shaders/formats/iq4xs.wgsl").into(),
        Format::MXFP4 => include_str!("shaders/formats/mxfp4.wgsl").into(),
    }
}
