//! Names that come from elsewhere: repositories as users write them, and files, checksums and revisions as a hub sends
//! them. What a hub sends becomes a part of a path only after one of the checks here.

use engine::Error;

use crate::failure::Result;

/// Longest part of a path that every common file system takes.
const PART_BYTES_MAX: usize = 255;

/// Longest name of a blob or a revision: both are checksums on real hubs.
const PLAIN_BYTES_MAX: usize = 128;

/// Ends of names that we give to files beside a blob.
pub(super) const OUR_ENDS: [&str; 3] = [".part", ".lock", ".incomplete"];

/// `org/name`, and what follows a colon: a quantisation or a file.
pub(super) fn parse(model: &str) -> Result<(&str, Option<&str>)> {
    let (name, selection) = match model.split_once(':') {
        Some((name, selection)) => (name, Some(selection)),
        None => (model, None),
    };
    // The hub has no names with these either; `--` stands for the slash in names of folders.
    let plain = |part: &str| {
        let chars = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.len() <= 96 && part.chars().all(chars) && !part.starts_with('.')
    };
    let repo = name.split('/').count() == 2
        && name.split('/').all(plain)
        && !name.contains("--")
        && !name.contains("..");
    if !repo || !selection.is_none_or(is_relative) {
        let message = format!("{model:?} is no repository; write org/name or org/name:Q4_K_M");
        return Err(Error::invalid(message).into());
    }
    Ok((name, selection))
}

/// Whether a server's file name stays below where it is put, on every system.
pub(super) fn is_relative(file: &str) -> bool {
    !file.is_empty() && file.split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    let strange = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
    !part.is_empty()
        && part.len() <= PART_BYTES_MAX
        && !part.ends_with(['.', ' ']) // so `.` and `..` too
        && !part.contains(strange)
        && !is_device(part)
}

/// Whether Windows takes the name for a device, whatever follows a dot.
fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_ascii_uppercase();
    let numbered = |kind: &str| {
        stem.strip_prefix(kind)
            .is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str()) || numbered("COM") || numbered("LPT")
}

/// Whether a server's checksum or revision can name a file: letters, digits, dots, dashes.
pub(super) fn is_plain(name: &str) -> bool {
    let chars = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= PLAIN_BYTES_MAX
        && name.chars().all(chars)
        && !name.starts_with('.')
        && !OUR_ENDS.iter().any(|end| name.to_ascii_lowercase().ends_with(end))
        && is_part(name)
}

/// A server's text for an error: short, on one line, without what moves a cursor.
pub(super) fn shown(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(200).map(visible).collect();
    if short.len() < text.len() {
        short.push_str(" ...");
    }
    short
}

/// Names for an error.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 40;
    let mut names: Vec<String> = names.into_iter().map(shown).collect();
    let more = names.len().saturating_sub(MOST);
    names.truncate(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &more
}

/// A path of a URL: what is not a letter, a digit or harmless becomes `%XX`.
pub(super) fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_two_names_and_no_path() {
        assert_eq!(parse("org/name-GGUF:Q4_K_M").ok(), Some(("org/name-GGUF", Some("Q4_K_M"))));
        assert_eq!(parse("org/name").ok(), Some(("org/name", None)));
        assert_eq!(parse("a/b:folder/m ö.gguf").ok(), Some(("a/b", Some("folder/m ö.gguf"))));
        for bad in [
            "name", "a/b/c", "../b", "a/..", "/b", "a/", "a/b:", "a/b:/d", "a b/c", "a/b:..", "", "a--b/c",
            "a/b:../c", "a/b:c\\d", "a/b:c:d", "a/b..c",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_the_hub_stays_below_its_folder() {
        for good in
            ["m.gguf", "a/b/m.gguf", "mö del (1).gguf", "模型.gguf", ".gitattributes", "console.json", "a..b"]
        {
            assert!(is_relative(good), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            "/m",
            "../m",
            "a/../m",
            "a//m",
            "a/",
            "a\\m",
            "C:m",
            "C:/m",
            "m\0",
            "m\n",
            "m.",
            "m ",
            "nul",
            "a/COM1.txt",
            "con .gguf",
            "m?",
            &long,
        ] {
            assert!(!is_relative(bad), "{bad:?}");
        }
    }

    #[test]
    fn checksums_and_revisions_are_one_plain_part() {
        for good in ["c0ffee", "65f1a-5e2c", "a.b", &"a".repeat(64)] {
            assert!(is_plain(good), "{good}");
        }
        let long = "a".repeat(129);
        for bad in [
            "", "/tmp/x", "../x", "a/b", "a\\b", ".", "..", ".a", "a b", "a+b=", "ä", "abc.part", "x.LOCK",
            "nul", &long,
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }

    #[test]
    fn urls_hold_what_urls_may_hold() {
        assert_eq!(encoded("a/mö del#1?.gguf"), "a/m%C3%B6%20del%231%3F.gguf");
        assert_eq!(encoded("100%-~_x.y"), "100%25-~_x.y");
    }

    #[test]
    fn what_a_server_says_is_short_and_moves_no_cursor() {
        assert_eq!(shown("a\x1b[2Jb\n"), "a [2Jb ");
        assert!(shown(&"x".repeat(1000)).len() < 210);
        let many: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        assert!(listed(many.iter().map(String::as_str)).ends_with("39 and 60 more"));
    }
}
