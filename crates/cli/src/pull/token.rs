//! The environment of the hub's own programs: where the hub is, and the token that a user has for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use engine::Error;

/// What the environment says about the hub.
pub(super) struct Settings {
    /// The hub's address, without a slash at its end.
    pub(super) endpoint: String,
    /// What to show it, if there is anything.
    pub(super) token: Option<Token>,
    /// Where a token was looked for.
    pub(super) looked: String,
}

/// A secret of the user's.
pub(super) struct Token {
    /// As the hub gave it out. Never in a message.
    pub(super) secret: String,
    /// Where it was found.
    pub(super) source: String,
}

const HUB: &str = "https://huggingface.co";

impl Settings {
    /// Reads `HF_ENDPOINT`, and as huggingface_hub does: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file that
    /// `HF_TOKEN_PATH` names, `token` in `HF_HOME`, in `XDG_CACHE_HOME/huggingface` or in `~/.cache/huggingface`. An empty
    /// variable counts as not set.
    ///
    /// # Errors
    /// `InvalidRequest` when `HF_HUB_OFFLINE` is set or what is found is no token; `Io` for a token file that cannot be read.
    pub(super) fn read(environment: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let is_on = |name: &str| {
            let value = variable(name).map(|v| v.to_string_lossy().to_ascii_uppercase());
            value.is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.as_str()))
        };
        if is_on("HF_HUB_OFFLINE") {
            return Err(Error::invalid("HF_HUB_OFFLINE is set: nothing is downloaded; unset it to pull"));
        }
        let endpoint = match variable("HF_ENDPOINT") {
            None => HUB.to_owned(),
            Some(text) => {
                let text = text.into_string().map_err(|_| Error::invalid("HF_ENDPOINT is not UTF-8"))?;
                text.trim().trim_end_matches('/').to_owned()
            }
        };
        if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let looked = "HF_HUB_DISABLE_IMPLICIT_TOKEN is set".to_owned();
            return Ok(Self { endpoint, token: None, looked });
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(token) = variable(name) {
                let token = token.into_string().unwrap_or_else(|_| "\0".into()); // refused below
                if let Some(token) = Token::of(&token, name.to_owned())? {
                    return Ok(Self { endpoint, token: Some(token), looked: String::new() });
                }
            }
        }
        let file = token_file(variable);
        let token = match &file {
            Some(file) => Token::of(&read(file)?, file.display().to_string())?,
            None => None,
        };
        let file = file.map_or_else(String::new, |file| format!(" or in {}", file.display()));
        Ok(Self { endpoint, token, looked: format!("no token in HF_TOKEN{file}") })
    }
}

/// The file that a token would be in.
fn token_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let user = variable("HOME").or_else(|| variable("USERPROFILE")).map(PathBuf::from);
    let place = |name: &str| {
        let path = PathBuf::from(variable(name)?);
        match (path.strip_prefix("~"), &user) {
            (Ok(rest), Some(user)) => Some(user.join(rest)),
            _ => Some(path),
        }
    };
    place("HF_TOKEN_PATH").or_else(|| {
        let caches = || place("XDG_CACHE_HOME").or_else(|| Some(user.as_ref()?.join(".cache")));
        Some(place("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))?.join("token"))
    })
}

/// A file's text; that there is none is no mistake.
fn read(file: &Path) -> Result<String, Error> {
    match std::fs::read_to_string(file) {
        Err(e) if [std::io::ErrorKind::NotFound, std::io::ErrorKind::NotADirectory].contains(&e.kind()) => {
            Ok(String::new())
        }
        read => read.map_err(|e| Error::io(format!("the token in {}", file.display()), e)),
    }
}

impl Token {
    /// White space around it is none of it; without anything else there is none.
    fn of(text: &str, source: String) -> Result<Option<Self>, Error> {
        let secret = text.trim();
        if secret.is_empty() {
            return Ok(None);
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid(format!("{source} holds no token: one is letters, digits and signs")));
        }
        Ok(Some(Self { secret: secret.to_owned(), source }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let map: HashMap<&str, &str> = variables.iter().copied().collect();
        Settings::read(|name| map.get(name).map(OsString::from))
    }

    fn token(variables: &[(&str, &str)]) -> Option<String> {
        settings(variables).unwrap().token.map(|token| token.secret)
    }

    #[test]
    fn a_token_is_found_where_other_programs_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (file, secret) in [
            ("hf/token", "of_home\n"),
            ("own", " of_path "),
            ("xdg/huggingface/token", "of_xdg"),
            (".cache/huggingface/token", "of_user"),
        ] {
            std::fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(file), secret).unwrap();
        }
        let (user, hf, own, xdg) = (path(""), path("hf"), path("own"), path("xdg"));
        let mut all = vec![
            ("HF_TOKEN", "of_variable"),
            ("HUGGING_FACE_HUB_TOKEN", "of_old"),
            ("HF_TOKEN_PATH", own.as_str()),
            ("HF_HOME", hf.as_str()),
            ("XDG_CACHE_HOME", xdg.as_str()),
            ("HOME", user.as_str()),
        ];
        for secret in ["of_variable", "of_old", "of_path", "of_home", "of_xdg", "of_user"] {
            assert_eq!(token(&all).as_deref(), Some(secret));
            all[0].1 = ""; // counts as not set
            assert_eq!(token(&all).is_some(), all.len() > 1);
            all.remove(0);
            if all.is_empty() {
                assert_eq!(token(&all), None);
            }
        }
        assert_eq!(token(&[("HOME", &user), ("HF_TOKEN_PATH", "~/own")]).as_deref(), Some("of_path"));
        let none = settings(&[("HF_HOME", &path("none"))]).unwrap();
        assert!(none.token.is_none() && none.looked.contains("none"), "{}", none.looked);
        assert_eq!(token(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn what_is_no_token_is_not_shown() {
        let error = settings(&[("HF_TOKEN", "hf_sec ret")]).err().unwrap();
        assert!(error.message().contains("HF_TOKEN") && !error.message().contains("sec"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string(); // a folder cannot be read
        assert!(settings(&[("HF_TOKEN_PATH", &path)]).err().unwrap().message().contains(&path));
    }

    #[test]
    fn the_hub_is_where_the_environment_says() {
        assert_eq!(settings(&[]).unwrap().endpoint, HUB);
        assert_eq!(settings(&[("HF_ENDPOINT", "")]).unwrap().endpoint, HUB);
        assert_eq!(settings(&[("HF_ENDPOINT", " http://a/b/ ")]).unwrap().endpoint, "http://a/b");
        assert!(settings(&[("HF_HUB_OFFLINE", "1")]).err().unwrap().message().contains("HF_HUB_OFFLINE"));
        assert!(settings(&[("HF_HUB_OFFLINE", "0")]).is_ok());
    }
}
