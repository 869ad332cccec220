//! Which files of a repository make up the model that was asked for. Nothing is chosen among several: they are named.

use std::collections::BTreeMap;

use engine::Error;
use serde_json::Value;

use super::names::{is_relative, listed};

/// Says where the weights of a safetensors model lie; the loader reads no other index.
pub(super) const INDEX: &str = "model.safetensors.index.json";

const WEIGHTS: &str = ".safetensors";

/// Files of a safetensors model besides its weights: what the loader reads.
const EXTRAS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
];

/// The files to pull.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// By their names in the repository.
    pub(super) files: Vec<String>,
    /// What the user should know before gigabytes arrive.
    pub(super) note: Option<String>,
}

/// Whether the model is one of safetensors files, so that its index must be read first.
pub(super) fn needs_index(there: &[String], selection: Option<&str>) -> bool {
    selection.is_none() && there.iter().any(|file| file == INDEX)
}

/// One model's GGUF files, or all that a safetensors model consists of. `index` is the content of [`INDEX`].
pub(super) fn choose(
    name: &str,
    there: &[String],
    selection: Option<&str>,
    index: Option<&[u8]>,
) -> Result<Choice, Error> {
    let files = match selection {
        Some(wanted) => gguf(name, there, wanted)?,
        None if there.iter().any(|file| !file.contains('/') && file.ends_with(WEIGHTS)) => {
            return safetensors(name, there, index);
        }
        None => only_gguf(name, there)?,
    };
    Ok(Choice { files: checked(name, files)?, note: None })
}

/// A GGUF model: one file, or the shards of one.
struct Gguf {
    /// Its path without the number of the shard and without `.gguf`.
    base: String,
    /// How many shards their names promise.
    count: Option<usize>,
    files: Vec<String>,
}

impl Gguf {
    /// What a user writes to get this one.
    fn stem(&self) -> &str {
        self.base.rsplit('/').next().unwrap_or(&self.base)
    }

    /// All files, in order.
    fn complete(mut self, name: &str) -> Result<Vec<String>, Error> {
        self.files.sort();
        let Some(count) = self.count else { return Ok(self.files) };
        for (i, file) in (1..=count).zip(self.files.iter().map(Some).chain(std::iter::repeat(None))) {
            let shard = format!("-{i:05}-of-{count:05}");
            if !file.is_some_and(|file| file.contains(&shard)) {
                let message =
                    format!("{name} has no {}{shard}.gguf: the model is not whole there", self.base);
                return Err(Error::not_found(message));
            }
        }
        self.files.truncate(count);
        Ok(self.files)
    }
}

/// The GGUF models of a repository, without vision towers and the like, which text models do without.
fn ggufs(there: &[String]) -> Vec<Gguf> {
    let mut all: BTreeMap<(String, Option<usize>), Vec<String>> = BTreeMap::new();
    for file in there {
        let Some(path) = without_end(file, ".gguf") else { continue };
        let stem = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        if stem.contains("mmproj") || stem.starts_with("imatrix") || stem.ends_with("imatrix") {
            continue;
        }
        let (base, count) = split_shard(path);
        all.entry((base.to_owned(), count)).or_default().push(file.clone());
    }
    all.into_iter().map(|((base, count), files)| Gguf { base, count, files }).collect()
}

/// A path without the number of its shard, and of how many it is one.
fn split_shard(path: &str) -> (&str, Option<usize>) {
    let number = |text: &str| {
        (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
    };
    let parts = path.rsplit_once("-of-").and_then(|(rest, count)| {
        let (base, shard) = rest.rsplit_once('-')?;
        number(shard)?;
        Some((base, number(count).filter(|count| *count > 0)?))
    });
    parts.map_or((path, None), |(base, count)| (base, Some(count)))
}

fn without_end<'a>(text: &'a str, end: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(end.len()).filter(|at| text.is_char_boundary(*at))?;
    text[at..].eq_ignore_ascii_case(end).then_some(&text[..at])
}

/// The GGUF model that `wanted` means: the one of this path, else of this name, else with that word in it.
fn gguf(name: &str, there: &[String], wanted: &str) -> Result<Vec<String>, Error> {
    let mut all = ggufs(there);
    let known: Vec<String> = all.iter().map(|model| model.base.clone()).collect();
    let exact = split_shard(without_end(wanted, ".gguf").unwrap_or(wanted)).0.to_lowercase();
    let fits: [&dyn Fn(&Gguf) -> bool; 3] = [
        &|model| model.base.to_lowercase() == exact,
        &|model| model.stem().to_lowercase() == exact,
        &|model| has_word(&model.base, wanted),
    ];
    match fits.iter().find(|fit| all.iter().any(fit)) {
        Some(fit) => all.retain(|model| fit(model)),
        None => all.clear(),
    }
    match <[Gguf; 1]>::try_from(all) {
        Ok([one]) => one.complete(name),
        Err(none) if none.is_empty() && known.is_empty() => {
            Err(Error::not_found(format!("{name} has no {wanted}; it has no GGUF files")))
        }
        Err(none) if none.is_empty() => {
            let known = listed(known.iter().map(String::as_str));
            Err(Error::not_found(format!("{name} has no {wanted}; write {name}: and one of {known}")))
        }
        Err(several) => Err(which(name, &several)),
    }
}

/// The one GGUF model of a repository.
fn only_gguf(name: &str, there: &[String]) -> Result<Vec<String>, Error> {
    match <[Gguf; 1]>::try_from(ggufs(there)) {
        Ok([one]) => one.complete(name),
        Err(none) if none.is_empty() => {
            Err(Error::unsupported(format!("{name} has neither GGUF nor safetensors files")))
        }
        Err(several) => Err(which(name, &several)),
    }
}

fn which(name: &str, several: &[Gguf]) -> Error {
    let names = several.iter().map(|model| model.base.as_str());
    Error::invalid(format!("{name} has several: say which, as {name}: and one of {}", listed(names)))
}

/// Whether `word` stands in a file's name by itself: Q4_K is not in Q4_K_M.
fn has_word(file: &str, word: &str) -> bool {
    let (file, word) = (file.to_lowercase(), word.to_lowercase());
    let border = |c: Option<char>| c.is_none_or(|c| "-./ ".contains(c));
    // model_q8_0 ends in a quantisation; in iq4_xs, xs is a part of one.
    let begins = |c: Option<char>| border(c) || (c == Some('_') && is_quantisation(&word));
    file.match_indices(&word).any(|(at, _)| {
        begins(file[..at].chars().next_back()) && border(file[at + word.len()..].chars().next())
    })
}

/// Whether a word begins as the names of number formats do: q4_k_m, iq2_xxs, bf16, mxfp4.
fn is_quantisation(word: &str) -> bool {
    let digit = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    ["q", "iq", "tq", "f", "bf", "fp", "mxfp", "nvfp"]
        .iter()
        .any(|kind| word.strip_prefix(kind).is_some_and(digit))
}

/// A safetensors model: its weights and what the loader reads beside them.
fn safetensors(name: &str, there: &[String], index: Option<&[u8]>) -> Result<Choice, Error> {
    let has = |file: &str| there.iter().any(|there| there == file);
    let weights = match index {
        Some(index) => indexed(name, index)?,
        None => not_indexed(name, there)?,
    };
    if let Some(missing) = weights.iter().find(|file| !has(file)) {
        return Err(Error::not_found(format!("{name} has no {missing:?}: the model is not whole there")));
    }
    if !has("config.json") {
        return Err(Error::unsupported(format!(
            "{name} has no config.json, which says what the weights are"
        )));
    }
    let extras = EXTRAS.iter().filter(|file| has(file)).map(|file| (*file).to_owned());
    let mut files: Vec<String> = extras.chain(index.map(|_| INDEX.to_owned())).collect();
    files.extend(weights);
    let without =
        "note: the repository has no tokenizer.json: the model can be measured, but cannot write text";
    let note = (!has("tokenizer.json")).then(|| without.to_owned());
    Ok(Choice { files: checked(name, files)?, note })
}

/// The files that an index names.
fn indexed(name: &str, index: &[u8]) -> Result<Vec<String>, Error> {
    let broken = |what: String| Error::corrupt(format!("{name}: {INDEX}: {what}"));
    let value: Value = serde_json::from_slice(index).map_err(|e| broken(e.to_string()))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return Err(broken("it names no weights".into()));
    };
    let mut files: Vec<String> = Vec::new();
    for file in map.values() {
        match file.as_str() {
            Some(file) if !file.contains('/') && file.ends_with(WEIGHTS) => files.push(file.to_owned()),
            _ => return Err(broken(format!("{file} is no name of a safetensors file"))),
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// The weights that the loader takes where there is no index: model.safetensors, the shards of model or of the only
/// one, or the only file.
fn not_indexed(name: &str, there: &[String]) -> Result<Vec<String>, Error> {
    let all = there.iter().filter(|file| !file.contains('/')).filter_map(|file| {
        let stem = file.strip_suffix(WEIGHTS)?;
        let (base, count) = split_shard(stem);
        Some((base, count, file))
    });
    let mut models: BTreeMap<(&str, Option<usize>), Vec<String>> = BTreeMap::new();
    for (base, count, file) in all {
        models.entry((base, count)).or_default().push(file.clone());
    }
    let shards = |(base, count): (&str, Option<usize>)| match count {
        None => vec![format!("{base}{WEIGHTS}")],
        Some(count) => (1..=count).map(|i| format!("{base}-{i:05}-of-{count:05}{WEIGHTS}")).collect(),
    };
    if models.contains_key(&("model", None)) {
        return Ok(shards(("model", None)));
    }
    let keys: Vec<_> = models.keys().copied().collect();
    match keys.as_slice() {
        [one] => Ok(shards(*one)),
        _ => {
            let names = listed(models.values().flatten().map(String::as_str));
            Err(Error::unsupported(format!("{name} has several safetensors files and no {INDEX}: {names}")))
        }
    }
}

/// The files, if each name can be one here and no two are one on a file system that does not tell cases apart.
fn checked(name: &str, mut files: Vec<String>) -> Result<Vec<String>, Error> {
    if let Some(strange) = files.iter().find(|file| !is_relative(file)) {
        return Err(Error::corrupt(format!(
            "{name}: the hub lists {strange:?}, which cannot name a file here"
        )));
    }
    let mut seen: BTreeMap<String, &String> = BTreeMap::new();
    for file in &files {
        if let Some(other) = seen.insert(file.to_lowercase(), file)
            && other != file
        {
            let message = format!("{name}: {other:?} and {file:?} differ in upper and lower case alone");
            return Err(Error::unsupported(message));
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use engine::ErrorKind;

    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn picked(list: &[&str], selection: Option<&str>) -> Result<Vec<String>, (ErrorKind, String)> {
        let choice = choose("org/name", &names(list), selection, None);
        choice.map(|choice| choice.files).map_err(|e| (e.kind(), e.message().to_owned()))
    }

    fn refused(list: &[&str], selection: Option<&str>, said: &[&str]) {
        let (_, message) = picked(list, selection).expect_err("several");
        said.iter().for_each(|name| assert!(message.contains(name), "{name}: {message}"));
    }

    #[test]
    fn one_quantisation_with_all_its_shards_and_nothing_else() {
        let there = [
            "m-Q4_K_M-00002-of-00002.gguf",
            "m-Q4_K_M-00001-of-00002.gguf",
            "m-Q4_K_S.gguf",
            "mmproj-Q4_K_M.gguf",
            "m.imatrix.gguf",
        ];
        let shards = names(&["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"]);
        for wanted in ["q4_k_m", "Q4_K_M", "m-Q4_K_M", "m-q4_k_m.gguf", "m-Q4_K_M-00001-of-00002.gguf"] {
            assert_eq!(picked(&there, Some(wanted)), Ok(shards.clone()), "{wanted}");
        }
        refused(&there, Some("Q4_K"), &["no Q4_K", "m-Q4_K_M", "m-Q4_K_S"]);
        refused(&there, None, &["say which", "m-Q4_K_M", "m-Q4_K_S"]);
        assert_eq!(picked(&there[..2], None), Ok(shards), "a split model alone");
        assert_eq!(picked(&["Q8_0/m.gguf", "Q4_0/m.gguf"], Some("Q8_0")), Ok(names(&["Q8_0/m.gguf"])));
        assert_eq!(picked(&["m.gguf", "mmproj-f16.gguf"], None), Ok(names(&["m.gguf"])));
    }

    #[test]
    fn several_models_of_a_quantisation_are_named_and_any_of_them_can_be_had() {
        let there = ["draft-0.6B-Q8_0.gguf", "main-30B-Q8_0.gguf"];
        refused(&there, Some("Q8_0"), &there.map(|file| file.trim_end_matches(".gguf")));
        for file in there {
            assert_eq!(picked(&there, Some(file)), Ok(names(&[file])));
        }
        let there = ["m-Q8_0.gguf", "m-Q8_0-vocab.gguf", "ext/m-Q8_0.gguf", "m-UD-Q8_0.gguf"];
        refused(&there, Some("Q8_0"), &["m-Q8_0-vocab", "ext/m-Q8_0", "m-UD-Q8_0"]);
        for (wanted, file) in
            [("m-Q8_0", 0), ("m-Q8_0-vocab", 1), ("ext/m-Q8_0", 2), ("ext/m-q8_0.gguf", 2), ("UD-Q8_0", 3)]
        {
            assert_eq!(picked(&there, Some(wanted)), Ok(names(&[there[file]])), "{wanted}");
        }
        refused(&["a/m-Q8_0.gguf", "b/m-Q8_0.gguf"], Some("m-Q8_0"), &["a/m-Q8_0", "b/m-Q8_0"]);
        refused(
            &["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q8_0.gguf"],
            Some("Q8_0"),
            &["several"],
        );
    }

    #[test]
    fn words_end_where_names_of_formats_end() {
        for (file, word) in [
            ("model_q8_0.gguf", "Q8_0"),
            ("mö del-Q8_0.gguf", "q8_0"),
            ("a b Q8_0.gguf", "Q8_0"),
            ("m-MXFP4.gguf", "mxfp4"),
            ("m_bf16.gguf", "BF16"),
        ] {
            assert_eq!(picked(&[file, "other.gguf"], Some(word)), Ok(names(&[file])), "{file} {word}");
        }
        for (file, word) in [
            ("m-IQ4_XS.gguf", "XS"),
            ("m-IQ4_XS.gguf", "Q4_XS"),
            ("m-Q4_K_M.gguf", "K_M"),
            ("m-Q8_0.gguf", "0"),
            ("m-Q4_0_4_4.gguf", "Q4_0"),
            ("m-Q4_0_4_4.gguf", "4_4"),
        ] {
            assert!(picked(&[file], Some(word)).is_err(), "{file} {word}");
        }
    }

    #[test]
    fn shards_that_the_repository_lacks_are_missed_before_anything_arrives() {
        let there = ["m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf"];
        refused(&there, Some("Q8_0"), &["m-Q8_0-00002-of-00003.gguf"]);
        refused(&["m-Q8_0-00002-of-00002.gguf"], None, &["m-Q8_0-00001-of-00002.gguf"]);
        refused(&["config.json", "m-00001-of-00002.safetensors"], None, &["m-00002-of-00002.safetensors"]);
    }

    #[test]
    fn names_that_lead_elsewhere_or_collide_are_refused_by_name() {
        for strange in ["../m-Q4_0.gguf", "/m-Q4_0.gguf", "a\\m-Q4_0.gguf", "C:m-Q4_0.gguf", "m-Q4_0 \0.gguf"]
        {
            refused(&[strange], Some("Q4_0"), &["cannot name a file"]);
        }
        refused(&["M-00001-of-00001.gguf", "m-00001-of-00001.gguf"], None, &["several"]);
        let weights = ["config.json", "A.safetensors", "a.safetensors"];
        let index = br#"{"weight_map": {"x": "A.safetensors", "y": "a.safetensors"}}"#;
        let error = choose("org/name", &names(&weights), None, Some(index)).expect_err("they collide");
        assert!(error.message().contains("upper and lower case"), "{error}");
    }

    #[test]
    fn a_safetensors_model_without_what_is_beside_it() {
        let there = [
            "README.md",
            "config.json",
            "model.safetensors",
            "model.fp32.safetensors",
            "adapter_model.safetensors",
            "onnx/model.safetensors",
            "tokenizer.json",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/other.jinja",
        ];
        let want = [
            "additional_chat_templates/tool_use.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ];
        assert_eq!(picked(&there, None), Ok(names(&want)));
        assert!(picked(&["README.md"], None).is_err());
        refused(
            &["a.safetensors", "b.safetensors", "config.json"],
            None,
            &["a.safetensors", "b.safetensors"],
        );
        refused(&["model.safetensors"], None, &["config.json"]);
        let silent = choose("org/name", &names(&["config.json", "model.safetensors"]), None, None);
        assert!(silent.unwrap().note.unwrap().contains("tokenizer.json"));
    }

    #[test]
    fn an_index_says_which_weights_belong() {
        let there =
            names(&["config.json", INDEX, "consolidated.safetensors", "s-1.safetensors", "tokenizer.json"]);
        assert!(
            needs_index(&there, None)
                && !needs_index(&there, Some("Q8_0"))
                && !needs_index(&there[..1], None)
        );
        let index = br#"{"weight_map": {"a": "s-1.safetensors", "b": "s-1.safetensors"}}"#;
        let choice = choose("org/name", &there, None, Some(index)).unwrap();
        let want = names(&["config.json", INDEX, "s-1.safetensors", "tokenizer.json"]);
        assert_eq!(choice, Choice { files: want, note: None });
        for (bad, said) in [
            (r#"{"weight_map": {"a": "s-2.safetensors"}}"#, "s-2.safetensors"),
            (r#"{"weight_map": {"a": "../s-1.safetensors"}}"#, "../s-1.safetensors"),
            (r#"{"weight_map": {"a": "config.json"}}"#, "config.json"),
            (r#"{"weight_map": {"a": 1}}"#, "1 is no name"),
            (r#"{"weight_map": {}}"#, "no weights"),
            ("{", INDEX),
        ] {
            let error = choose("org/name", &there, None, Some(bad.as_bytes())).expect_err(bad);
            assert!(error.message().contains(said), "{bad}: {error}");
        }
    }
}
