//! What a subgroup does with matrix instructions, written out: it sums squares of sixteen by sixteen, which WGSL cannot
//! hold in an array. Devices multiply matrices of one size: 16 x 16 on Vulkan, where a square is one matrix, and 8 x 8 on
//! Metal, where it is four.

use std::fmt::Write as _;

/// Subgroups of a workgroup.
const SUBGROUPS: usize = 4;
/// Outputs of a workgroup.
const OUTPUTS: usize = 128;
/// Vectors of four from one row of a tile to the next, as `units.wgsl` has it.
const PITCH: usize = 10;
/// Values of four squares on their way out.
const SUMS: usize = 4 * 256;

/// The size of matrices of Metal, which naga does not ask for: it writes others too, for no device.
pub const METAL_MATRIX: u32 = 8;

/// Which text to write.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Rows of a block: 32, 64 or 128.
    pub(super) rows: usize,
    /// Rows and columns of a matrix: 16 or 8.
    pub(super) matrix: usize,
    /// Values that the kernel takes at a time on the way out: 4 or 1.
    pub(super) values: usize,
}

/// How a workgroup's subgroups share [`Shape::rows`] rows and [`OUTPUTS`] outputs.
struct Share {
    /// Squares of a subgroup, one below and one beside another.
    down: usize,
    across: usize,
    /// Rows and columns of a matrix, and how many of them are a side of a square.
    matrix: usize,
    parts: usize,
}

impl Share {
    fn of(shape: Shape) -> Self {
        let (down, across) = match shape.rows {
            128 => (4, 4),
            64 => (4, 2),
            _ => (2, 2),
        };
        Self { down, across, matrix: shape.matrix, parts: 16 / shape.matrix }
    }

    /// First row and first output of a subgroup.
    fn at(&self) -> [String; 2] {
        let beside = OUTPUTS / (16 * self.across);
        debug_assert!(SUBGROUPS.is_multiple_of(beside));
        [
            format!("subgroup / {beside}u * {}u", 16 * self.down),
            format!("subgroup % {beside}u * {}u", 16 * self.across),
        ]
    }

    /// The type of matrices of `scalar` in a role.
    fn type_of(&self, scalar: &str, role: char) -> String {
        format!("coop_mat{0}x{0}<{scalar}, {role}>", self.matrix)
    }

    /// A place in a tile of f16, at a row and a column; naga's Metal wants a pointer to a scalar.
    fn in_tile(&self, tile: &str, row: &str, column: usize) -> String {
        match self.parts {
            1 => format!("&{tile}[({row}) * {PITCH}u + {}u], {PITCH}u", column / 4),
            _ => format!("&{tile}[({row}) * {0}u + {column}u], {0}u", 4 * PITCH),
        }
    }
}

/// The kernel's text for a shape:
/// * `$MEMORY` declares the workgroup's memory, and what writes and reads it by vectors of four;
/// * `$SUMS` declares the squares;
/// * `$MULTIPLY` adds a step of both tiles to them;
/// * `$SQUARES(f)` does f for each, in the workgroup's memory, where `$ROW` and `$COLUMN` of f say which it is;
/// * `$PAIRS(f)` the same for pairs side by side, the first of which is in `gate_sums`.
pub(super) fn written_out(text: &str, shape: Shape) -> String {
    let share = Share::of(shape);
    let out = text.replace("$MEMORY", &memory(shape));
    let out = out.replace("$SUMS", &sums(&share)).replace("$MULTIPLY", &multiply(&share));
    let out = with_argument(&out, "$SQUARES", |f| squares(&share, f));
    with_argument(&out, "$PAIRS", |f| pairs(&share, f))
}

/// Replaces a line `name(f)` by what `make` makes of f.
fn with_argument(text: &str, name: &str, make: impl Fn(&str) -> String) -> String {
    let Some((before, rest)) = text.split_once(&format!("{name}(")) else { return text.into() };
    let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
    let f = line.strip_suffix(')').unwrap_or(line);
    format!("{before}{}{after}", make(f))
}

fn memory(shape: Shape) -> String {
    if shape.matrix == 16 {
        return include_str!("shaders/units_vectors.wgsl").into();
    }
    let sum = match shape.values {
        4 => "vec4<f32>(sums[4u * at], sums[4u * at + 1u], sums[4u * at + 2u], sums[4u * at + 3u])",
        _ => "sums[at]",
    };
    include_str!("shaders/units_scalars.wgsl").replace("$SUM", sum)
}

fn sums(share: &Share) -> String {
    let mut out = String::new();
    let kind = share.type_of("f32", 'C');
    if share.parts > 1 {
        // Zeros that are loaded: what a matrix without a value holds is the driver's affair.
        let zero = format!("for (var i = t; i < {SUMS}u; i += THREADS) {{\nsums[i] = 0.0;\n}}");
        let _ = writeln!(out, "{zero}\nworkgroupBarrier();");
    }
    for (i, j, part) in share.matrices() {
        // Writing to a String cannot fail.
        let _ = match share.parts {
            1 => writeln!(out, "var c{i}{j}{part} = {kind}();"),
            _ => writeln!(out, "var c{i}{j}{part} = coopLoadT<{kind}>(&sums[0], 16u);"),
        };
    }
    let [row, column] = share.at();
    let _ = writeln!(out, "let r = {row};\nlet n = {column};");
    out
}

impl Share {
    /// Squares and the names of their parts: nothing, or row and column in the square.
    fn matrices(&self) -> Vec<(usize, usize, String)> {
        let mut all = Vec::new();
        for (i, j) in (0..self.down).flat_map(|i| (0..self.across).map(move |j| (i, j))) {
            for (a, b) in (0..self.parts).flat_map(|a| (0..self.parts).map(move |b| (a, b))) {
                all.push((i, j, self.part(a, b)));
            }
        }
        all
    }

    fn part(&self, a: usize, b: usize) -> String {
        if self.parts == 1 { String::new() } else { format!("_{a}{b}") }
    }
}

fn multiply(share: &Share) -> String {
    let mut out = String::new();
    let (kind_a, kind_b) = (share.type_of("f16", 'A'), share.type_of("f16", 'B'));
    for k in (0..32).step_by(share.matrix) {
        out.push_str("{\n");
        for j in 0..share.across * share.parts {
            let at = share.in_tile("w_tile", &format!("n + {}u", share.matrix * j), k);
            let _ = writeln!(out, "let b{j} = coopLoad<{kind_b}>({at});");
        }
        for i in 0..share.down * share.parts {
            let at = share.in_tile("x_tile", &format!("r + {}u", share.matrix * i), k);
            let _ = writeln!(out, "let a{i} = coopLoadT<{kind_a}>({at});");
        }
        for i in 0..share.down * share.parts {
            for j in 0..share.across * share.parts {
                let part = share.part(i % share.parts, j % share.parts);
                let c = format!("c{}{}{part}", i / share.parts, j / share.parts);
                let _ = writeln!(out, "{c} = coopMultiplyAdd(a{i}, b{j}, {c});");
            }
        }
        out.push_str("}\n");
    }
    out
}

/// Puts a square into the workgroup's memory.
fn put(share: &Share, i: usize, j: usize) -> String {
    let mut out = String::new();
    for (a, b) in (0..share.parts).flat_map(|a| (0..share.parts).map(move |b| (a, b))) {
        let (part, within) = (share.part(a, b), share.matrix * (16 * a + b));
        let _ = match share.parts {
            1 => writeln!(out, "coopStoreT(c{i}{j}, &sums[subgroup * SQUARE], SIDE);"),
            _ => writeln!(out, "coopStoreT(c{i}{j}{part}, &sums[subgroup * 256u + {within}u], 16u);"),
        };
    }
    out + "workgroupBarrier();\n"
}

fn named(f: &str, i: usize, j: usize) -> String {
    f.replace("$ROW", &format!("r + {}u", 16 * i)).replace("$COLUMN", &format!("n + {}u", 16 * j))
}

fn squares(share: &Share, f: &str) -> String {
    let mut out = String::new();
    for i in 0..share.down {
        for j in 0..share.across {
            let _ = writeln!(out, "{}{}\nworkgroupBarrier();", put(share, i, j), named(f, i, j));
        }
    }
    out
}

fn pairs(share: &Share, f: &str) -> String {
    let mut out = String::new();
    for i in 0..share.down {
        for j in (0..share.across).step_by(2) {
            let held = "let gate_sums = held(subgroup, lane);\nworkgroupBarrier();";
            let (gate, up, f) = (put(share, i, j), put(share, i, j + 1), named(f, i, j));
            let _ = writeln!(out, "{{\n{gate}{held}\n{up}{f}\nworkgroupBarrier();\n}}");
        }
    }
    out
}
