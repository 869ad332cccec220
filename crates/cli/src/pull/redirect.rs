//! Where redirects lead, and whether that is still the same place.

use std::fmt;

use ureq::http::Uri;
use ureq::http::uri::Scheme;

/// Scheme, host and port: what a secret belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// Of an http or https address; `None` for anything else.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme()?;
        let secure = *scheme == Scheme::HTTPS;
        if !secure && *scheme != Scheme::HTTP {
            return None;
        }
        let host = uri.host().filter(|host| !host.is_empty())?.trim_end_matches('.').to_ascii_lowercase();
        let authority = uri.authority()?.as_str();
        let port = match uri.port_u16() {
            Some(port) => port,
            None if authority.ends_with(':') || authority.ends_with(']') || !has_port(authority) => {
                if secure { 443 } else { 80 }
            }
            None => return None, // a port that is no number
        };
        Some(Self { secure, host, port })
    }

    /// Whether what is sent there is encrypted.
    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// The host's name.
    pub(super) fn host(&self) -> &str {
        &self.host
    }
}

fn has_port(authority: &str) -> bool {
    let host = authority.rsplit('@').next().unwrap_or(authority);
    host.rsplit(']').next().unwrap_or(host).contains(':')
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.secure { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// The address that a `Location` means at `base` (RFC 3986, 5.2); `None` when it is none of http or https.
pub(super) fn join(base: &Uri, location: &[u8]) -> Option<Uri> {
    let location = escaped(location);
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let first = location.split(['/', '?']).next()?;
    let text = if first.ends_with(':') {
        location.to_owned()
    } else if first.contains(':') {
        return None; // some other kind of address
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else {
        let (path, query) = match location.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (location, String::new()),
        };
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let path = match path {
            "" => base.path().to_owned(),
            path if path.starts_with('/') => without_dots(path),
            path => without_dots(&format!("{folder}/{path}")),
        };
        format!("{scheme}://{authority}{path}{query}")
    };
    let uri: Uri = text.parse().ok()?;
    Origin::of(&uri).map(|_| uri)
}

/// What addresses may not hold becomes `%XX`: servers send spaces and letters of all scripts.
fn escaped(location: &[u8]) -> String {
    let mut out = String::with_capacity(location.len());
    for &byte in location.trim_ascii() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let ends_in_folder = path.ends_with(['/']) || path.ends_with("/.") || path.ends_with("/..");
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if ends_in_folder && parts.last().is_some_and(|last| !last.is_empty()) {
        parts.push("");
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<Origin> {
        Origin::of(&text.parse().ok()?)
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = origin("https://huggingface.co/a/b").unwrap();
        for same in
            ["https://huggingface.co:443/", "https://HuggingFace.co", "https://me:pw@huggingface.co/x"]
        {
            assert_eq!(origin(same).as_ref(), Some(&hub), "{same}");
        }
        for other in [
            "http://huggingface.co/",
            "https://huggingface.co:8443/",
            "https://cdn.huggingface.co/",
            "https://huggingface.co.evil.example/",
            "https://huggingface.co@evil.example/",
        ] {
            assert_ne!(origin(other).unwrap(), hub, "{other}");
        }
        for none in ["ftp://a/", "/a", "https://a:99999/", "file:///etc/passwd"] {
            assert_eq!(origin(none), None, "{none}");
        }
        assert_eq!(origin("http://[::1]/").map(|o| o.to_string()).as_deref(), Some("http://[::1]"));
        assert_eq!(origin("http://me:pw@a:81/x").map(|o| o.to_string()).as_deref(), Some("http://a:81"));
    }

    #[test]
    fn locations_are_joined_as_the_standard_says() {
        let base: Uri = "http://a:81/b/c/d?q".parse().unwrap();
        let at = |location: &str| join(&base, location.as_bytes()).map(|uri| uri.to_string());
        for (location, want) in [
            ("https://x/y?z=1#f", "https://x/y?z=1"),
            ("HTTP://x/", "http://x/"),
            ("//x/y", "http://x/y"),
            ("/y/../z", "http://a:81/z"),
            ("g", "http://a:81/b/c/g"),
            ("./g/", "http://a:81/b/c/g/"),
            ("../g?x=/../y", "http://a:81/b/g?x=/../y"),
            ("../../../../g", "http://a:81/g"),
            ("?y", "http://a:81/b/c/d?y"),
            ("..", "http://a:81/b/"),
            ("/mö del", "http://a:81/m%C3%B6%20del"),
            ("/a%20b", "http://a:81/a%20b"),
        ] {
            assert_eq!(at(location).as_deref(), Some(want), "{location}");
        }
        for none in ["ftp://x/", "mailto:x", "file:///etc/passwd", "http://", "javascript:1"] {
            assert_eq!(at(none), None, "{none}");
        }
    }
}
