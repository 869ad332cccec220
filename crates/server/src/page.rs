//! The page at `/`: files that are part of the program, and what a browser may do with them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::state::Shared;

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const FILES: [File; 3] = [
    File { path: "/", kind: "text/html; charset=utf-8", text: include_str!("../page/page.html") },
    File { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("../page/page.css") },
    File { path: "/page.js", kind: "text/javascript; charset=utf-8", text: include_str!("../page/page.js") },
];

/// Nothing but these files and this server, no text as code, and no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    // Asked for again each time, and sent if it is another program's.
    (header::CACHE_CONTROL, "no-cache"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// This path, if it is one of the page. Whoever may ask at all may have these: there is nothing of a user in them.
pub(crate) fn find(path: &str) -> Option<&'static str> {
    FILES.iter().map(|file| file.path).find(|own| *own == path)
}

/// `router` with the page's paths.
pub(crate) fn routes(router: Router<Arc<Shared>>) -> Router<Arc<Shared>> {
    FILES.iter().fold(router, |router, file| {
        let tag = tag(file.text);
        router.route(file.path, get(move |headers: HeaderMap| async move { answer(file, &tag, &headers) }))
    })
}

/// A name for this text.
fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn answer(file: &File, tag: &str, asked: &HeaderMap) -> Response {
    let known = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut response = match is_known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, file.kind)], file.text).into_response(),
    };
    let headers = response.headers_mut();
    HEADERS.into_iter().for_each(|(name, value)| {
        headers.insert(name, HeaderValue::from_static(value));
    });
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_asks_nobody_else() {
        assert!(FILES.iter().map(|file| file.text.len()).sum::<usize>() < 150_000);
        for file in FILES {
            for other in ["http://", "https://", "url(", "@import", "innerHTML", "eval("] {
                let own = |line: &str| line.contains("http://www.w3.org/2000/svg");
                let bad = file.text.lines().find(|line| line.contains(other) && !own(line));
                assert_eq!(bad, None, "{} has {other}", file.path);
            }
        }
    }
}
