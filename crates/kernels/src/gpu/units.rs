//! What a subgroup does on matrix units, written out: it sums squares of sixteen by sixteen, which WGSL cannot hold in
//! an array.

use std::fmt::Write as _;

/// Subgroups of a team.
const SUBGROUPS: usize = 4;
/// Outputs of a team.
const OUTPUTS: usize = 128;
/// Vectors of four from one row of a tile to the next, as `units.wgsl` has it.
const PITCH: usize = 10;

/// How a team's subgroups share `rows` rows and [`OUTPUTS`] outputs.
struct Share {
    /// Squares of a subgroup, one below and one beside another.
    down: usize,
    across: usize,
}

impl Share {
    fn of(rows: usize) -> Self {
        match rows {
            128 => Self { down: 4, across: 4 },
            64 => Self { down: 4, across: 2 },
            _ => Self { down: 2, across: 2 },
        }
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
}

/// The kernel's text for blocks of `rows` rows, 32, 64 or 128:
/// * `$SUMS` declares the squares;
/// * `$MULTIPLY` adds a step of both tiles to them;
/// * `$SQUARES(f)` does f for each, in the workgroup's memory, where `$ROW` and `$COLUMN` of f say which it is;
/// * `$PAIRS(f)` the same for pairs side by side, the first of which is in `gate_sums`.
pub(super) fn written_out(text: &str, rows: usize) -> String {
    let share = Share::of(rows);
    let out = text.replace("$SUMS", &sums(&share)).replace("$MULTIPLY", &multiply(&share));
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

fn sums(share: &Share) -> String {
    let mut out = String::new();
    for i in 0..share.down {
        for j in 0..share.across {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "var c{i}{j} = coop_mat16x16<f32, C>();");
        }
    }
    let [row, column] = share.at();
    let _ = writeln!(out, "let r = {row};\nlet n = {column};");
    out
}

fn multiply(share: &Share) -> String {
    let mut out = String::new();
    for k in [0, 4] {
        out.push_str("{\n");
        for j in 0..share.across {
            let at = format!("(n + {}u) * {PITCH}u + {k}u", 16 * j);
            let _ = writeln!(out, "let b{j} = coopLoad<coop_mat16x16<f16, B>>(&w_tile[{at}], {PITCH}u);");
        }
        for i in 0..share.down {
            let at = format!("(r + {}u) * {PITCH}u + {k}u", 16 * i);
            let _ = writeln!(out, "let a{i} = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[{at}], {PITCH}u);");
        }
        for i in 0..share.down {
            for j in 0..share.across {
                let _ = writeln!(out, "c{i}{j} = coopMultiplyAdd(a{i}, b{j}, c{i}{j});");
            }
        }
        out.push_str("}\n");
    }
    out
}

/// Puts a square into the workgroup's memory.
fn put(i: usize, j: usize) -> String {
    format!("coopStoreT(c{i}{j}, &sums[subgroup * SQUARE], SIDE);\nworkgroupBarrier();\n")
}

fn named(f: &str, i: usize, j: usize) -> String {
    f.replace("$ROW", &format!("r + {}u", 16 * i)).replace("$COLUMN", &format!("n + {}u", 16 * j))
}

fn squares(share: &Share, f: &str) -> String {
    let mut out = String::new();
    for i in 0..share.down {
        for j in 0..share.across {
            let _ = writeln!(out, "{}{}\nworkgroupBarrier();", put(i, j), named(f, i, j));
        }
    }
    out
}

fn pairs(share: &Share, f: &str) -> String {
    let mut out = String::new();
    for i in 0..share.down {
        for j in (0..share.across).step_by(2) {
            let held = "let gate_sums = held(subgroup, lane);\nworkgroupBarrier();";
            let (gate, up, f) = (put(i, j), put(i, j + 1), named(f, i, j));
            let _ = writeln!(out, "{{\n{gate}{held}\n{up}{f}\nworkgroupBarrier();\n}}");
        }
    }
    out
}
