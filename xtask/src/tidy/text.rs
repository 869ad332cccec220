//! Laws that need no parser: file length and words that must not be in the project.

use super::Finding;

const FILE_LINES: usize = 600;

/// Endings of files that people read as code; prose and configuration may be longer.
const CODE_ENDINGS: [&str; 6] = [".rs", ".wgsl", ".py", ".sh", ".h", ".c"];

/// Words in two pieces, so that this table does not find itself; and why each is out.
const WORDS: [(&str, &str, &str); 14] = [
    ("TO", "DO", UNFINISHED),
    ("FIX", "ME", UNFINISHED),
    ("todo", "!(", UNFINISHED),
    ("unimpl", "emented!(", UNFINISHED),
    ("/wo", "rk/", MACHINE),
    ("../sha", "red", MACHINE),
    (".lib", "rary", MACHINE),
    ("/ro", "ot/", MACHINE),
    ("arti", "factory", HOST),
    ("index.cra", "tes.io", HOST),
    ("static.cra", "tes.io", HOST),
    ("py", "pi.org", HOST),
    ("files.python", "hosted.org", HOST),
    ("deb.deb", "ian.org", HOST),
];

const UNFINISHED: &str = "marks unfinished work; finish it, or open an issue, because a marker in the code is \
                          read by nobody and a stub can be reached by a user";
const MACHINE: &str =
    "is a path of one developer's machine; the project must build and be understood anywhere";
const HOST: &str = "is a registry host; name packages and let the user's own client configuration find them";

/// Checks the length and the words of one text file.
pub fn check_text(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES && CODE_ENDINGS.iter().any(|ending| path.ends_with(ending)) {
        findings.push(Finding {
            path: path.into(),
            line: 0,
            message: format!(
                "{lines} lines, at most {FILE_LINES}: split it along a seam of its subject; a file that fits in \
                 one reading stays understood by more than its author"
            ),
        });
    }
    for (index, line) in text.lines().enumerate() {
        for (head, tail, why) in WORDS {
            let word = format!("{head}{tail}");
            if line.contains(&word) {
                findings.push(Finding {
                    path: path.into(),
                    line: index + 1,
                    message: format!("`{word}` {why}"),
                });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_600_lines_and_no_more() {
        assert_eq!(check_text("a.rs", &"x\n".repeat(600)), []);
        assert!(check_text("a.wgsl", &"x\n".repeat(601))[0].message.contains("601 lines"));
        assert_eq!(check_text("docs/learned.md", &"x\n".repeat(601)), []);
    }

    #[test]
    fn each_word_is_found_with_its_line_and_reason() {
        for (head, tail, why) in WORDS {
            let text = format!("fine\n// see {head}{tail}now\n");
            let findings = check_text("a.md", &text);
            assert_eq!(findings.len(), 1, "{head}{tail}");
            assert_eq!(findings[0].line, 2);
            assert!(findings[0].message.contains(why));
        }
    }
}
