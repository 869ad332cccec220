//! A hub over HTTP: requests, redirects, refusals. The token goes to the hub's own origin alone; what a hub sends is
//! checked before anybody uses it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Error, ErrorKind};
use serde_json::Value;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::names::{encoded, is_plain, shown};
use super::patience::{Again, Patience, Trouble};
use super::redirect::{Origin, join};
use super::token::Settings;

/// One repository of a hub.
pub(super) struct Hub {
    repo: String,
    settings: Settings,
    origin: Origin,
    agent: Agent,
    /// How often and how long to try again.
    pub(super) patience: Patience,
    /// Whether it has ever answered: a hub that cannot be reached at all is not waited for.
    reached: AtomicBool,
}

/// A revision of the repository.
pub(super) struct Revision {
    /// Its checksum, fit for the name of a folder.
    pub(super) commit: String,
    /// Names of its files, as the hub sent them.
    pub(super) files: Vec<String>,
}

/// What the hub says about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    /// Its checksum, fit for the name of a file.
    pub(super) etag: String,
    /// Whether equal checksums mean equal bytes.
    pub(super) is_strong: bool,
    /// Its size.
    pub(super) bytes: u64,
}

/// A file's content, from somewhere on.
pub(super) struct Content {
    /// Where it begins in the file.
    pub(super) start: u64,
    /// What comes.
    pub(super) body: Body,
}

/// Why something of a file could not be had.
pub(super) enum Ended {
    /// The repository is not what it was when the pull began: it begins anew.
    Changed(String),
    /// Nothing more can be done.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Why there is no content.
pub(super) enum NoContent {
    /// It may come on another try, or not.
    Trouble(Trouble),
    /// The file is not the one that it was.
    Changed(String),
    /// The server cannot send a part of a file.
    NoRanges,
}

impl From<Trouble> for NoContent {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// An answer at the end of all redirects.
struct Answer {
    response: Response<Body>,
    /// Headers of the hop that knows the repository: the hub's own, not those of the store it leads to.
    own: HeaderMap,
    /// Whether the hub's own origin sent the response.
    at_home: bool,
    /// The host that sent it.
    host: String,
}

const REDIRECTS_MAX: usize = 10;

/// Repositories have at most some ten thousand files; indices of the largest models have 10 MB.
const TEXT_BYTES_MAX: u64 = 64 << 20;

const AUTHORIZATION: &str = "authorization";
const COMMIT: &str = "x-repo-commit";
const CONTENT_ENCODING: &str = "content-encoding";
const CONTENT_LENGTH: &str = "content-length";
const CONTENT_RANGE: &str = "content-range";
const ERROR_CODE: &str = "x-error-code";
const ERROR_MESSAGE: &str = "x-error-message";
const ETAG: &str = "etag";
const IF_RANGE: &str = "if-range";
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";
const LOCATION: &str = "location";
const RANGE: &str = "range";
const RATE_LIMIT: &str = "ratelimit";
const RETRY_AFTER: &str = "retry-after";

impl Hub {
    /// The repository `repo` of the hub that `settings` name. Nothing is sent yet.
    ///
    /// # Errors
    /// `InvalidRequest` when `HF_ENDPOINT` is no address.
    pub(super) fn new(repo: &str, settings: Settings, patience: Patience) -> Result<Self, Error> {
        let origin = settings.endpoint.parse().ok().and_then(|uri: Uri| Origin::of(&uri));
        let origin = origin.filter(|_| !settings.endpoint.contains(['?', '#'])).ok_or_else(|| {
            Error::invalid("HF_ENDPOINT is no address of a hub; write https://HOST, or unset it")
        })?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("tidemill/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(Duration::from_secs(30)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_send_request(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        let agent = config.build().new_agent();
        Ok(Self { repo: repo.to_owned(), settings, origin, agent, patience, reached: AtomicBool::new(false) })
    }

    /// The newest revision, and its files.
    ///
    /// # Errors
    /// In the user's words, also for an answer that is no hub's.
    pub(super) fn revision(&self) -> Result<Revision, Error> {
        let url = format!("{}/api/models/{}/revision/main", self.settings.endpoint, self.repo);
        let text = self.text(&url, &self.repo)?;
        let strange = |what: &str| {
            let hub = self.shown();
            Error::corrupt(format!("{}: {hub} answers {what}: is HF_ENDPOINT a hub?", self.repo))
        };
        let value: Value = serde_json::from_slice(&text).map_err(|_| strange("what is no JSON"))?;
        let commit = value.get("sha").and_then(Value::as_str).ok_or_else(|| strange("without a revision"))?;
        if !is_plain(commit) {
            let commit = shown(commit);
            return Err(Error::corrupt(format!(
                "{}: the hub's revision {commit:?} is no checksum",
                self.repo
            )));
        }
        let siblings = value.get("siblings").and_then(Value::as_array);
        let name = |file: &Value| Some(file.get("rfilename")?.as_str()?.to_owned());
        let files = siblings.and_then(|files| files.iter().map(name).collect::<Option<_>>());
        let files = files.ok_or_else(|| strange("without a list of files"))?;
        Ok(Revision { commit: commit.to_owned(), files })
    }

    /// A small file's content.
    ///
    /// # Errors
    /// As [`Hub::revision`].
    pub(super) fn small_file(&self, commit: &str, file: &str) -> Result<Vec<u8>, Error> {
        self.text(&self.url(commit, file), &self.named(file))
    }

    fn text(&self, url: &str, what: &str) -> Result<Vec<u8>, Error> {
        self.patience.short().keep_trying(&AtomicBool::new(false), || {
            let answer = self.follow(url, what, &[], |_| false)?;
            let answer = self.accepted(answer, what)?;
            let mut body = answer.response.into_body();
            let broken = |e: ureq::Error| Trouble::soon(format!("{what}: {}", cause(&e)));
            body.with_config().limit(TEXT_BYTES_MAX).read_to_vec().map_err(broken)
        })
    }

    /// What the hub says about a file, without its content.
    ///
    /// # Errors
    /// As [`Hub::revision`], and when the hub answers from another revision.
    pub(super) fn about(&self, commit: &str, file: &str, stop: &AtomicBool) -> Result<About, Ended> {
        let (url, what) = (self.url(commit, file), self.named(file));
        let asked = self.patience.short().keep_trying(stop, || {
            // One byte, since some servers answer no HEAD; a redirect that knows the size is not followed.
            let one = [(RANGE, "bytes=0-0")];
            let known = |own: &HeaderMap| has_etag(own) && own.contains_key(LINKED_SIZE);
            let mut answer = self.follow(&url, &what, &one, known)?;
            if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                answer = self.follow(&url, &what, &[], known)?; // an empty file has no first byte
            }
            if !answer.response.status().is_redirection() {
                answer = self.accepted(answer, &what)?;
            }
            Ok(answer)
        });
        let answer = asked?;
        same_revision(&answer, commit, &what).map_err(Ended::Changed)?;
        Ok(described(&answer, &what)?)
    }

    /// A file's content from `start` on, or from its beginning when the server cannot do that.
    ///
    /// # Errors
    /// Says whether trying again helps.
    pub(super) fn content(
        &self,
        commit: &str,
        file: &str,
        want: &About,
        start: u64,
    ) -> Result<Content, NoContent> {
        let what = self.named(file);
        let (range, etag) = (format!("bytes={start}-"), format!("\"{}\"", want.etag));
        let mut headers = Vec::new();
        if start > 0 {
            headers.push((RANGE, range.as_str()));
        }
        if start > 0 && want.is_strong {
            headers.push((IF_RANGE, etag.as_str())); // dropped where another host answers
        }
        let answer = self.follow(&self.url(commit, file), &what, &headers, |_| false)?;
        if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(NoContent::NoRanges);
        }
        let answer = self.accepted(answer, &what)?;
        same_revision(&answer, commit, &what).map_err(NoContent::Changed)?;
        if let Some((etag, _)) = own_etag(&answer.own).map_err(|e| Trouble::never(e.context(&what)))?
            && etag != want.etag
        {
            return Err(NoContent::Changed(format!("{what}: its checksum is not what it was")));
        }
        let headers = answer.response.headers();
        if text_of(headers, CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
            let message = format!("{what}: {} sends it encoded, though asked not to", answer.host);
            return Err(Trouble::never(Error::unsupported(message)).into());
        }
        let lies = |said: u64| {
            let message = format!(
                "{what}: {} promises {said} bytes, the file has {}; pull again",
                answer.host, want.bytes
            );
            NoContent::Trouble(Trouble::never(Error::corrupt(message)))
        };
        let is_part = answer.response.status() == StatusCode::PARTIAL_CONTENT;
        let mut begins = 0;
        if is_part {
            let range = text_of(headers, CONTENT_RANGE).and_then(parse_range);
            let Some((from, total)) = range.filter(|(from, _)| *from == start) else {
                return Err(NoContent::NoRanges);
            };
            if let Some(total) = total.filter(|total| *total != want.bytes) {
                return Err(lies(total));
            }
            begins = from;
        }
        // A part may be less than what was asked for; a whole may not.
        let rest = want.bytes.saturating_sub(begins);
        match length(headers) {
            Some(length) if length > rest || (!is_part && length < rest) => {
                Err(lies(begins.saturating_add(length)))
            }
            _ => Ok(Content { start: begins, body: answer.response.into_body() }),
        }
    }

    /// The address of a file.
    fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.settings.endpoint, self.repo, encoded(commit), encoded(file))
    }

    fn named(&self, file: &str) -> String {
        format!("{}: {file}", self.repo)
    }

    /// The hub for a message: what may stand before an @ in an address is a secret.
    fn shown(&self) -> String {
        self.origin.to_string()
    }

    /// Sends a request, and follows redirects until an answer or until `known` is satisfied by the headers so far.
    fn follow(
        &self,
        url: &str,
        what: &str,
        headers: &[(&str, &str)],
        known: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Answer, Trouble> {
        let strange = |text: String| Trouble::never(Error::corrupt(format!("{what}: {text}")));
        let mut uri: Uri = url.parse().map_err(|_| strange("its name makes no address".into()))?;
        let mut own = HeaderMap::new();
        // Once led elsewhere, what comes back is not trusted with the token any more.
        let mut trusted = true;
        for _ in 0..=REDIRECTS_MAX {
            let Some(here) = Origin::of(&uri) else {
                return Err(strange("a redirect leads to no address".into()));
            };
            trusted &= here == self.origin;
            let mut request = self.agent.get(uri.clone());
            for (name, value) in headers.iter().filter(|(name, _)| trusted || *name != IF_RANGE) {
                request = request.header(*name, *value);
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| trusted) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret));
            }
            let response = request.call().map_err(|e| self.transport(&here, &e, what))?;
            self.reached.store(true, Ordering::Relaxed);
            let knows = |name: &str| response.headers().contains_key(name);
            // A hop that knows nothing of the file leaves what an earlier one said.
            let says_more = trusted && has_etag(response.headers());
            if says_more || knows(COMMIT) || knows(LINKED_ETAG) || !has_etag(&own) {
                own = response.headers().clone();
            }
            let host = here.host().to_owned();
            if !is_redirect(response.status()) || known(&own) {
                return Ok(Answer { response, own, at_home: trusted, host });
            }
            let to = response.headers().get(LOCATION).and_then(|to| join(&uri, to.as_bytes()));
            let to = to.ok_or_else(|| strange(format!("{host} redirects to no address")))?;
            if here.is_secure() && !Origin::of(&to).is_some_and(|to| to.is_secure()) {
                return Err(strange(format!("{host} redirects from https to http; that is not followed")));
            }
            uri = to;
        }
        Err(strange(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// The answer if it is a good one, else what the user should know.
    fn accepted(&self, answer: Answer, what: &str) -> Result<Answer, Trouble> {
        if answer.response.status().is_success() {
            return Ok(answer);
        }
        Err(self.refusal(&answer, what))
    }

    /// A connection that failed.
    fn transport(&self, to: &Origin, error: &ureq::Error, what: &str) -> Trouble {
        let cause = cause(error);
        if is_unreachable(error) && !self.reached.load(Ordering::Relaxed) {
            let message = format!(
                "{what}: {cause}; this was {to}: look whether it can be reached, or set HF_ENDPOINT to another hub"
            );
            return Trouble::never(Error::new(ErrorKind::Io, message));
        }
        Trouble::soon(format!("{what}: {} broke off: {cause}", to.host()))
    }

    /// What an answer that is none means, and what to do.
    fn refusal(&self, answer: &Answer, what: &str) -> Trouble {
        let (status, headers) = (answer.response.status(), answer.response.headers());
        let (code, host) = (status.as_u16(), &answer.host);
        let said =
            text_of(headers, ERROR_MESSAGE).map(|said| format!(" ({})", shown(said))).unwrap_or_default();
        if code == 429 {
            let wait = retry_after(headers);
            let again =
                wait.map_or_else(|| "in some minutes".into(), |wait| format!("in {} s", wait.as_secs()));
            let more = if self.settings.token.is_none() { "; with a token it allows more" } else { "" };
            let message = format!("{what}: too many requests for {host}: wait, and try again {again}{more}");
            return Trouble { error: Error::new(ErrorKind::Io, message), again: Again::after(wait) };
        }
        if status.is_server_error() || [408, 425].contains(&code) {
            let message =
                format!("{what}: {host} answers {status}{said}; try again later, what has arrived stays");
            return Trouble {
                error: Error::new(ErrorKind::Io, message),
                again: Again::after(retry_after(headers)),
            };
        }
        if !answer.at_home {
            // An address that the hub gave out for some minutes: the next request gets another one.
            return Trouble::soon(format!("{what}: {host}, where the hub leads, answers {status}"));
        }
        let error = match code {
            404 | 410 => Error::not_found(format!("{what}: the hub has no such model or file")),
            401 | 403 => Error::not_found(format!("{what}: {}{said}", self.may_not_see(code, headers))),
            _ => Error::new(ErrorKind::Io, format!("{what}: {host} answers {status}{said}")),
        };
        Trouble::never(error)
    }

    /// Why the hub shows a model to others.
    fn may_not_see(&self, code: u16, headers: &HeaderMap) -> String {
        let page = format!("{}/{}", self.shown(), self.repo);
        let gated = text_of(headers, ERROR_CODE) == Some("GatedRepo");
        match &self.settings.token {
            Some(token) if code == 401 && !gated => format!(
                "the hub does not take the token from {}: it is wrong or expired; make a new one on the hub",
                token.source
            ),
            Some(token) => format!(
                "the account of the token from {} may not see it: accept the model's licence at {page}, or take a \
                 token that may read it",
                token.source
            ),
            None => format!(
                "the hub has no such model, or you may not see it ({}): accept its licence at {page} if it has one, and \
                 set HF_TOKEN",
                self.settings.looked
            ),
        }
    }
}

/// The hub's answer must be from the revision that was asked for: files of two do not make a model.
fn same_revision(answer: &Answer, commit: &str, what: &str) -> Result<(), String> {
    match text_of(&answer.own, COMMIT) {
        Some(other) if other != commit => Err(format!("{what}: the hub answers from another revision")),
        _ => Ok(()),
    }
}

/// What an answer without content says about a file.
fn described(answer: &Answer, what: &str) -> Result<About, Error> {
    let strange = |text: &str| Error::corrupt(format!("{what}: the hub {text}"));
    let etag = own_etag(&answer.own).map_err(|e| e.context(what))?;
    let (etag, is_strong) = etag.ok_or_else(|| strange("sends no ETag for it"))?;
    let headers = answer.response.headers();
    let range = text_of(headers, CONTENT_RANGE).and_then(parse_range).and_then(|(_, total)| total);
    let whole = || match answer.response.status() {
        StatusCode::OK => length(headers),
        _ => None,
    };
    let linked = text_of(&answer.own, LINKED_SIZE).and_then(|size| size.parse().ok());
    let bytes = linked.or(range).or_else(whole).ok_or_else(|| strange("does not say its size"))?;
    Ok(About { etag, is_strong, bytes })
}

/// The checksum of the hop that knows the repository, without quotes, and whether it is a strong one.
fn own_etag(own: &HeaderMap) -> Result<Option<(String, bool)>, Error> {
    let Some(value) = own.get(LINKED_ETAG).or_else(|| own.get(ETAG)) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let weak = text.trim().strip_prefix("W/");
    let etag = weak.unwrap_or(text.trim()).trim_matches('"');
    if !is_plain(etag) {
        return Err(Error::corrupt(format!("the hub's ETag {:?} is no checksum", shown(etag))));
    }
    Ok(Some((etag.to_owned(), weak.is_none())))
}

fn has_etag(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.contains_key(LINKED_ETAG)
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    text_of(headers, CONTENT_LENGTH)?.parse().ok()
}

/// First byte and total of `bytes 5-9/10`; no total for `bytes 5-9/*`.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse::<u64>().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

/// How long to wait: seconds, or what is left of a window of requests (`"api";r=0;t=57`).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text_of(headers, RETRY_AFTER).and_then(|text| text.parse().ok());
    let window = || {
        let parts = text_of(headers, RATE_LIMIT)?.split(';');
        parts.filter_map(|part| part.trim().strip_prefix("t=")?.parse().ok()).next()
    };
    seconds.or_else(window).map(Duration::from_secs)
}

fn is_redirect(status: StatusCode) -> bool {
    [301, 302, 303, 307, 308].contains(&status.as_u16())
}

/// Whether no connection came about at all.
fn is_unreachable(error: &ureq::Error) -> bool {
    use std::io::ErrorKind as Io;
    match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::BadUri(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => true,
        ureq::Error::Io(e) => matches!(
            e.kind(),
            Io::ConnectionRefused | Io::HostUnreachable | Io::NetworkUnreachable | Io::AddrNotAvailable
        ),
        _ => false,
    }
}

/// The cause without the library's prefixes.
fn cause(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(e) => shown(&e.to_string()),
        ureq::Error::Timeout(_) => "no answer in time".into(),
        other => shown(&other.to_string()),
    }
}
