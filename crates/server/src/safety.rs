//! Who is answered, and what of a body is taken.
//!
//! A web page can point a name of its own at this machine and have the visitor's browser ask here. Without a key, so, only
//! those are answered who call this machine by its own names, and no page of another origin may have anything computed.

use std::hint::black_box;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};

use api::{ApiError, ErrorClass};
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, Method, Uri, header};

use crate::options::Options;

/// Judges heads of requests.
#[derive(Debug)]
pub(crate) struct Guard {
    host: String,
    /// Whether it listens for this machine alone.
    is_local: bool,
    keys: Vec<String>,
    cors: Vec<String>,
}

pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

impl Guard {
    /// For a server that listens on an address of this machine alone, or of others too.
    pub(crate) fn new(options: &Options, is_local: bool) -> Self {
        let host = options.host.trim_matches(['[', ']']).to_ascii_lowercase();
        Self { host, is_local, keys: options.keys.clone(), cors: options.cors.clone() }
    }

    /// Refuses names of others and pages of others.
    ///
    /// # Errors
    /// `Forbidden`.
    pub(crate) fn check_names(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        let named = uri.authority().map(|authority| authority.as_str());
        let host = named.or_else(|| headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
        if self.keys.is_empty() && !self.is_own(host) {
            let message = format!(
                "the host {:?} is not a name of this server; start it with --host, or with --api-key, to be reached \
                 under other names",
                api::body::shown(host)
            );
            return Err(ApiError::new(ErrorClass::Forbidden, message));
        }
        if method == Method::POST
            && let Some(origin) = headers.get(header::ORIGIN)
        {
            let origin = origin.to_str().unwrap_or("null");
            let own = origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
            if !own && !self.shares_with(origin) {
                let origin = api::body::shown(origin);
                let message = format!("pages of {origin:?} may not ask here; --cors lets them");
                return Err(ApiError::new(ErrorClass::Forbidden, message));
            }
        }
        Ok(())
    }

    /// Whether this is a name of this server, with or without a port.
    fn is_own(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.to_ascii_lowercase();
        // No name service can make others of an address, so it is nobody's trick.
        let is_address = || !self.is_local && name.parse::<IpAddr>().is_ok();
        let is_loopback = name == "127.0.0.1" || name.parse() == Ok(Ipv6Addr::LOCALHOST);
        name == "localhost" || is_loopback || name == self.host || is_address()
    }

    /// Whether pages of this origin may ask.
    pub(crate) fn shares_with(&self, origin: &str) -> bool {
        self.cors.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }

    /// Refuses who has no key.
    ///
    /// # Errors
    /// `Key`.
    pub(crate) fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let own = headers.get(API_KEY).and_then(|value| value.to_str().ok());
        let given = [bearer, own];
        // All keys are compared, whichever fits.
        let fits = |given: &str| self.keys.iter().fold(false, |fits, key| fits | same(given, key));
        if given.iter().flatten().fold(false, |ok, given| ok | fits(given)) {
            return Ok(());
        }
        let message = match given.iter().flatten().next() {
            Some(_) => "Incorrect API key provided.",
            None => "No API key was given: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
        };
        Err(ApiError::new(ErrorClass::Key, message))
    }
}

/// Whether both are the same, in a time that depends on the length of the key alone.
fn same(given: &str, key: &str) -> bool {
    let (given, key) = (given.as_bytes(), key.as_bytes());
    let differences = key.iter().enumerate().fold(given.len() ^ key.len(), |all, (at, byte)| {
        all | usize::from(byte ^ given.get(at).unwrap_or(&0))
    });
    black_box(differences) == 0
}

/// Refuses what is not JSON by its own account: a page may send anything else here without being asked for permission.
///
/// # Errors
/// `ContentType`.
pub(crate) fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = given.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("content-type must be application/json, not {:?}", api::body::shown(kind));
    Err(ApiError::new(ErrorClass::ContentType, message))
}

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    /// # Errors
    /// `ContentType` for others.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(Self::None) };
        match value.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::None),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => {
                let other = api::body::shown(other);
                let message = format!("content-encoding {other:?} is not known: send gzip, zstd or none");
                Err(ApiError::new(ErrorClass::ContentType, message))
            }
        }
    }

    /// The body as it was packed, as long as it has at most `most` bytes. Takes time.
    ///
    /// # Errors
    /// `Invalid` for what does not unpack, `TooLarge`.
    pub(crate) fn unpack(self, body: Bytes, most: usize) -> Result<Vec<u8>, ApiError> {
        let bad =
            |name| ApiError::invalid(None, format!("the body is not the {name} that content-encoding says"));
        match self {
            Self::None => Ok(body.into()),
            Self::Gzip => read(flate2::read::MultiGzDecoder::new(&*body), most, || bad("gzip")),
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(&*body).map_err(|_| bad("zstd"))?;
                read(decoder, most, || bad("zstd"))
            }
        }
    }
}

fn read(from: impl Read, most: usize, bad: impl Fn() -> ApiError) -> Result<Vec<u8>, ApiError> {
    let mut out = Vec::new();
    from.take(most as u64 + 1).read_to_end(&mut out).map_err(|_| bad())?;
    if out.len() > most { Err(too_large(most)) } else { Ok(out) }
}

/// A body of more bytes than are taken.
pub(crate) fn too_large(most: usize) -> ApiError {
    ApiError::new(
        ErrorClass::TooLarge,
        format!("the body has more than {most} bytes, which --max-body allows"),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::http::HeaderValue;

    use super::*;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn guard(host: &str, local: bool, keys: &[&str], cors: &[&str]) -> Guard {
        let of = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Guard::new(
            &Options { host: host.into(), keys: of(keys), cors: of(cors), ..Options::default() },
            local,
        )
    }

    fn names(guard: &Guard, method: Method, of: &[(&'static str, &str)]) -> bool {
        guard.check_names(&method, &Uri::from_static("/v1/models"), &headers(of)).is_ok()
    }

    #[test]
    fn only_own_names_are_answered_without_a_key() {
        let local = guard("127.0.0.1", true, &[], &[]);
        for own in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]"] {
            assert!(names(&local, Method::GET, &[("host", own)]), "{own}");
        }
        for other in
            ["evil.example", "localhost.evil.example:8080", "", "127.0.0.1.evil:80", "10.0.0.7", "[::2]"]
        {
            assert!(!names(&local, Method::GET, &[("host", other)]), "{other}");
        }
        assert!(!names(&local, Method::GET, &[]));
        let uri = Uri::from_static("http://evil.example/v1/models");
        assert!(local.check_names(&Method::GET, &uri, &headers(&[("host", "localhost")])).is_err());
        let open = guard("0.0.0.0", false, &[], &[]);
        assert!(names(&open, Method::GET, &[("host", "10.0.0.7:8080")]));
        assert!(!names(&open, Method::GET, &[("host", "evil.example")]));
        assert!(names(&guard("box.local", false, &[], &[]), Method::GET, &[("host", "Box.local:8080")]));
        assert!(names(&guard("127.0.0.1", true, &["k"], &[]), Method::GET, &[("host", "evil.example")]));
    }

    #[test]
    fn pages_of_others_may_not_ask() {
        let guard = guard("127.0.0.1", true, &[], &["https://chat.example"]);
        let ask = |origin| names(&guard, Method::POST, &[("host", "localhost:8080"), ("origin", origin)]);
        assert!(ask("http://localhost:8080") && ask("https://chat.example"));
        for foreign in ["null", "http://localhost:3000", "https://evil.example", "https://chat.example.evil"]
        {
            assert!(!ask(foreign), "{foreign}");
        }
        assert!(names(&guard, Method::GET, &[("host", "localhost"), ("origin", "https://evil.example")]));
    }

    #[test]
    fn a_key_is_needed_where_there_is_one() {
        let guard = guard("127.0.0.1", true, &["one", "two"], &[]);
        let fits = |of: &[(&'static str, &str)]| guard.check_key(&headers(of)).is_ok();
        assert!(fits(&[("authorization", "Bearer two")]) && fits(&[("authorization", "bearer one")]));
        assert!(
            fits(&[("x-api-key", "one")]) && fits(&[("authorization", "Bearer no"), ("x-api-key", "two")])
        );
        let bad: [&[(&'static str, &str)]; 5] = [
            &[],
            &[("authorization", "Basic one")],
            &[("authorization", "Bearer on")],
            &[("x-api-key", "onee")],
            &[("x-api-key", "")],
        ];
        assert!(bad.iter().all(|of| !fits(of)));
        let mut odd = HeaderMap::new();
        odd.insert("x-api-key", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(guard.check_key(&odd).is_err());
    }

    #[test]
    fn json_says_that_it_is() {
        let is = |kind| check_content_type(&headers(&[("content-type", kind)])).is_ok();
        assert!(is("application/json") && is("Application/JSON; charset=utf-8"));
        assert!(
            !is("text/plain") && !is("application/jsonx") && check_content_type(&HeaderMap::new()).is_err()
        );
    }

    #[test]
    fn bodies_unpack_within_the_limit() {
        let text = "x".repeat(100_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(text.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd =
            ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        for (packing, packed) in [(Packing::Gzip, gzip), (Packing::Zstd, zstd)] {
            let unpack = |bytes: &[u8], most| packing.unpack(Bytes::copy_from_slice(bytes), most);
            assert_eq!(unpack(&packed, text.len()).unwrap(), text.as_bytes());
            assert_eq!(unpack(&packed, text.len() - 1).unwrap_err().class, ErrorClass::TooLarge);
            assert_eq!(unpack(b"{\"no\":1}", 10).unwrap_err().class, ErrorClass::Invalid);
            assert_eq!(
                unpack(&packed[..packed.len() / 2], text.len()).unwrap_err().class,
                ErrorClass::Invalid
            );
        }
        assert!(Packing::of(&headers(&[("content-encoding", "br")])).is_err());
        assert_eq!(Packing::of(&headers(&[("content-encoding", "GZIP")])), Ok(Packing::Gzip));
    }
}
