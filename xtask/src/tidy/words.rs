//! The words of the field, and how wide a document is: a stranger searches with the words that he knows.
//!
//! Documents are checked whole, but for `docs/log`, which is history. Of the program, what users read is checked: the
//! help (as its snapshot has it) and the texts in the code of [`TEXTS`]. Comments are checked in [`COMMENTS`] alone; to
//! extend that, add a folder, run `cargo xtask tidy`, and rename what it finds.

use super::Finding;

/// Columns of a line of prose. Tables, code and the targets of links may be longer, since they cannot be broken.
const COLUMNS: usize = 110;

/// Figures in a sentence of the front page: more belong into a table, one a cell.
const FIGURES: usize = 2;

/// A comment in a document that excuses the lines from its own to the next empty one; a reason must follow.
const ALLOW: &str = "<!-- tidy: allow ";

/// Where texts in code are checked. Not `kernels`: its texts name shaders and their parts.
const TEXTS: [&str; 6] = [
    "crates/api/src/",
    "crates/cli/src/",
    "crates/engine/src/",
    "crates/files/src/",
    "crates/server/src/",
    "crates/store/src/",
];

/// Where comments are checked too.
const COMMENTS: [&str; 2] = ["crates/files/src/", "xtask/src/"];

/// The snapshot of the help of all commands.
pub(super) const HELP: &str = "crates/cli/tests/snapshots/it__help__help_of_every_command.snap";

/// What not to say, in lower case, and what to say instead.
const DIALECT: [(&str, &str); 31] = [
    ("matrix unit", "tensor core"),
    ("matrix units", "tensor cores"),
    ("team", "workgroup"),
    ("teams", "workgroups"),
    ("halves", "f16"),
    ("asked for ahead", "prefetched"),
    ("ask for ahead", "prefetch"),
    ("asked for earlier", "prefetched earlier"),
    ("asked for along", "prefetched along"),
    ("card", "discrete GPU, or VRAM for its memory"),
    ("cards", "discrete GPUs"),
    ("memory group", "cgroup"),
    ("control group", "cgroup"),
    ("in turns", "alternating, A/B"),
    ("residue", "outlier"),
    ("residues", "outliers"),
    ("excess", "outlier"),
    ("excesses", "outliers"),
    ("guess", "speculative read, or hint"),
    ("guesses", "speculative reads, or hints"),
    ("guessed", "read ahead, or hinted"),
    ("guessing", "the lookahead"),
    ("prepare x", "quantise activations"),
    ("prepares x", "quantises activations"),
    ("preparing x", "quantising activations"),
    ("prepared x", "quantised activations"),
    ("gives up its slot", "is evicted"),
    ("give up its slot", "be evicted"),
    ("gives up a slot", "is evicted"),
    ("slot is given up", "expert is evicted"),
    ("slots are given up", "experts are evicted"),
];

/// Checks a Markdown file: the width of its lines, and its words.
pub fn check_document(path: &str, text: &str) -> Vec<Finding> {
    if path.starts_with("docs/log/") && path != "docs/log/README.md" {
        return Vec::new();
    }
    let (mut findings, mut in_code, mut allowed) = (Vec::new(), false, false);
    let mut figures = Figures::default();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_code {
            continue;
        }
        let reason = line.split_once(ALLOW).map(|(_, reason)| reason.trim_end_matches("-->").trim());
        allowed = !line.trim().is_empty() && (allowed || reason.is_some_and(|reason| !reason.is_empty()));
        let prose = without_targets(line);
        let columns = prose.chars().count();
        if columns > COLUMNS && !line.starts_with('|') && prose.trim().contains(' ') {
            findings.push(Finding {
                path: path.into(),
                line: index + 1,
                message: format!(
                    "{columns} columns, at most {COLUMNS}: wrap it, because nobody reads, and no diff shows, what lies \
                     beyond the edge"
                ),
            });
        }
        let prose = without_code(&prose);
        if !allowed {
            findings.extend(dialect(path, index + 1, &prose));
        }
        if path == "README.md" && figures.exceed(&prose) {
            findings.push(Finding {
                path: path.into(),
                line: index + 1,
                message: format!(
                    "a sentence with more than {FIGURES} figures: make it a table with one figure a cell, because \
                     nobody keeps three figures in mind until the end of a sentence"
                ),
            });
        }
    }
    findings
}

/// Counts the figures of a sentence over its lines.
#[derive(Default)]
struct Figures(usize);

impl Figures {
    /// Whether a sentence that this line goes on with, begins or ends has too many, said once for each sentence.
    fn exceed(&mut self, line: &str) -> bool {
        if line.trim().is_empty() || line.starts_with(['|', '#', '*']) {
            self.0 = 0;
        }
        let mut found = false;
        for word in line.split_whitespace().filter(|_| !line.starts_with('|')) {
            let word = word.trim_start_matches(['(', '*', '_']);
            self.0 += usize::from(word.starts_with(|c: char| c.is_ascii_digit()));
            found |= self.0 == FIGURES + 1 && word.starts_with(|c: char| c.is_ascii_digit());
            if word.ends_with(['.', ':', ';', '!', '?']) {
                self.0 = 0;
            }
        }
        found
    }
}

/// Checks the help of the program, as its snapshot has it.
pub fn check_help(path: &str, text: &str) -> Vec<Finding> {
    text.lines().enumerate().flat_map(|(index, line)| dialect(path, index + 1, line)).collect()
}

/// Checks the comments of a Rust file, where they are checked.
pub fn check_comments(path: &str, text: &str) -> Vec<Finding> {
    if !COMMENTS.iter().any(|folder| path.starts_with(folder)) {
        return Vec::new();
    }
    let comment = |line: &str| Some(without_code(line.trim_start().strip_prefix("//")?));
    let comments = text.lines().enumerate().filter_map(|(index, line)| Some((index + 1, comment(line)?)));
    comments.flat_map(|(line, comment)| dialect(path, line, &comment)).collect()
}

/// Whether what the texts in the code of this file say is read by users.
pub(super) fn speaks(path: &str) -> bool {
    TEXTS.iter().any(|folder| path.starts_with(folder))
}

/// A finding for each word of the dialect in a line of prose.
pub(super) fn dialect(path: &str, line: usize, prose: &str) -> Vec<Finding> {
    let lower = prose.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let says = |phrase: &str| {
        let phrase: Vec<&str> = phrase.split(' ').collect();
        words.windows(phrase.len()).any(|window| window == phrase)
    };
    let found = DIALECT.iter().filter(|(not, _)| says(not));
    let finding = |(not, say): &(&str, &str)| Finding {
        path: path.into(),
        line,
        message: format!(
            "`{not}`: say {say}, because a stranger searches with the words of the field (CONTRIBUTING.md, Words)"
        ),
    };
    found.map(finding).collect()
}

/// The line with a stand-in for what is between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" _ ")
}

/// The line without the targets of its links.
fn without_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push(']');
        out += part.split_once(')').map_or("", |(_, rest)| rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn prose_is_narrow_and_what_cannot_be_broken_may_be_wide() {
        let wide = "word ".repeat(23);
        let link = format!("See [this page]({}).", "a".repeat(120));
        let text = format!("{wide}\n| {wide} |\n```\n{wide}\n```\n{link}\n{}\n", "a".repeat(120));
        assert_eq!(lines(&check_document("a.md", &text)), [1]);
        assert_eq!(check_document("docs/log/2026-11-23.md", &text), []);
    }

    #[test]
    fn words_of_the_dialect_are_found_whole_and_with_what_to_say() {
        let found =
            check_document("a.md", "A card.\nDiscarded cards, in `team`.\nIt is in `mod` turns; in turns.\n");
        assert_eq!(lines(&found), [1, 2, 3]);
        assert!(found[0].message.contains("discrete GPU"), "{}", found[0]);
        assert_eq!(check_document("docs/log/2026-11-23.md", "A card.\n"), []);
        assert_eq!(lines(&check_help("help.snap", "fine\nA Memory\nthe memory group\n")), [3]);
    }

    #[test]
    fn a_sentence_of_the_front_page_has_two_figures_at_most() {
        let text = "It has 1 and 2.\nThree: 1.5 and 2\nand 3 of them.\n\n| 1 2 3 |\n* `1` 2 3\n";
        assert_eq!(lines(&check_document("README.md", text)), [3]);
        assert_eq!(check_document("a.md", text), []);
    }

    #[test]
    fn a_reason_excuses_the_lines_to_the_next_empty_one() {
        let text = "<!-- tidy: allow the glossary names them -->\n| a card |\n| a team |\n\na card\n";
        assert_eq!(lines(&check_document("a.md", text)), [5]);
        assert_eq!(lines(&check_document("a.md", "<!-- tidy: allow -->\na card\n")), [2]);
    }

    #[test]
    fn comments_are_checked_where_they_are_clean() {
        let text = "/// A card.\nlet card = 1; // `card`\n";
        assert_eq!(lines(&check_comments("crates/files/src/a.rs", text)), [1]);
        assert_eq!(check_comments("crates/kernels/src/a.rs", text), []);
    }
}
