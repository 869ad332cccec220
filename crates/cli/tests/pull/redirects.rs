//! Redirects are followed, and the token goes to the hub alone.

use std::sync::Arc;

use super::Cache;
use super::hub::{Asked, Hub, Reply, noise};
use crate::common::{fails_with, succeed};

const FILE: &str = "mill-Q4_0.gguf";
const TOKEN: &str = "hf_secret";

/// A hub whose files lie at `to`, where FILE stands for their name and PORT for the hub's port; `linked` as large files
/// are, whose size the hub knows itself.
fn leading(to: &'static str, linked: bool) -> Arc<Hub> {
    Hub::new(&[(FILE, noise(5000, 1))], move |hub, asked, reply| {
        if !asked.path.contains("/resolve/") {
            return reply;
        }
        let to = to.replace("FILE", FILE).replace("PORT", &hub.port.to_string());
        let etag = reply.headers.iter().find(|(name, _)| name == "ETag").map(|(_, etag)| etag.clone());
        let redirect = Reply::redirect(&to).with("X-Repo-Commit", &"c".repeat(40));
        let redirect = redirect.with("X-Linked-Etag", &etag.expect("an ETag"));
        if linked { redirect.with("X-Linked-Size", "5000") } else { redirect }
    })
}

fn tokens(hub: &Hub, at: impl Fn(&Asked) -> bool) -> Vec<Option<String>> {
    hub.asked().into_iter().filter(|asked| at(asked)).map(|asked| asked.token).collect()
}

#[test]
fn a_token_goes_to_the_hub_and_nowhere_else() {
    for linked in [true, false] {
        let hub = leading("http://localhost:PORT/cdn/FILE", linked);
        let cache = Cache::new();
        succeed(cache.pull(&hub).env("HF_TOKEN", TOKEN));
        let home = tokens(&hub, |asked| asked.host.starts_with("127.0.0.1"));
        assert!(home.iter().all(|token| token.as_deref() == Some("Bearer hf_secret")), "{home:?}");
        let away = tokens(&hub, |asked| asked.host.starts_with("localhost"));
        let requests = if linked { 1 } else { 2 };
        assert_eq!(away, vec![None; requests], "linked: {linked}");
    }
}

#[test]
fn another_port_is_another_place_and_a_way_back_is_not_trusted() {
    let other = Hub::new(&[], |_, asked, _| {
        let back = asked.path.strip_prefix("/to/").expect("where to");
        Reply::redirect(&format!("http://127.0.0.1:{back}"))
    });
    let away = other.port;
    let hub = Hub::new(&[(FILE, noise(5000, 1))], move |hub, asked, reply| {
        if asked.path.contains("/resolve/") {
            let to = format!("http://127.0.0.1:{away}/to/{}/cdn/{FILE}", hub.port);
            return Reply::redirect(&to)
                .with("ETag", &reply.headers.iter().find(|(name, _)| name == "ETag").expect("one").1);
        }
        reply
    });
    succeed(Cache::new().pull(&hub).env("HF_TOKEN", TOKEN));
    assert!(tokens(&other, |_| true).iter().all(Option::is_none));
    assert!(tokens(&hub, |asked| asked.path.starts_with("/cdn/")).iter().all(Option::is_none));
    assert!(tokens(&hub, |asked| asked.path.contains("/resolve/")).iter().all(Option::is_some));
}

#[test]
fn redirects_within_the_hub_keep_the_token() {
    for to in
        ["/cdn/FILE", "../../../../cdn/FILE", "http://127.0.0.1:PORT/cdn/FILE", "//127.0.0.1:PORT/cdn/FILE"]
    {
        let hub = leading(to, false);
        succeed(Cache::new().pull(&hub).env("HF_TOKEN", TOKEN));
        assert!(tokens(&hub, |asked| asked.path.starts_with("/cdn/")).iter().all(Option::is_some), "{to}");
    }
}

#[test]
fn redirects_that_lead_nowhere_end() {
    for (to, said) in [
        ("/org/mill/resolve/loop/FILE", "more than 10 redirects"),
        ("file:///etc/passwd", "no address"),
        ("ftp://127.0.0.1/x", "no address"),
        ("http://", "no address"),
        ("", "no address"),
    ] {
        let hub = Hub::new(&[(FILE, noise(5000, 1))], move |_, asked, reply| {
            if !asked.is_file() {
                return reply;
            }
            let reply = Reply::redirect(&to.replace("FILE", FILE));
            if to.is_empty() { reply.without("Location") } else { reply }
        });
        fails_with(&mut Cache::new().pull(&hub), 4, &[said, FILE]);
        assert!(hub.asked().len() < 13, "{to}");
    }
}

#[test]
fn an_address_of_the_store_that_has_run_out_is_asked_for_anew() {
    let hub = Hub::new(&[(FILE, noise(5000, 1))], |hub, asked, reply| {
        if asked.path.contains("/resolve/") && asked.is_content() {
            return Reply::redirect(&format!("http://localhost:{}/cdn/{FILE}", hub.port));
        }
        if asked.path.starts_with("/cdn/") && asked.earlier == 0 { Reply::new(403, "expired") } else { reply }
    });
    assert_eq!(Cache::new().pulled(&hub), noise(5000, 1));
}

/// A hub that shows its model to one token.
fn gated(code: u16) -> Arc<Hub> {
    Hub::new(&[(FILE, noise(5000, 1))], move |_, asked, reply| {
        if asked.token.as_deref() == Some("Bearer hf_secret") { reply } else { Reply::new(code, "{}") }
    })
}

#[test]
fn the_token_is_where_the_hubs_own_programs_have_it() {
    let hub = gated(401);
    let cache = Cache::new();
    succeed(cache.pull(&hub).env("HF_TOKEN", TOKEN));
    succeed(cache.pull(&hub).env("HUGGING_FACE_HUB_TOKEN", TOKEN));
    std::fs::write(cache.path().join("mine"), "hf_secret\n").expect("writable");
    succeed(cache.pull(&hub).env("HF_TOKEN_PATH", cache.path().join("mine")));
    std::fs::create_dir_all(cache.path().join("hf")).expect("writable");
    std::fs::write(cache.path().join("hf/token"), "hf_secret\n").expect("writable");
    succeed(&mut cache.pull(&hub));
}

#[test]
fn refusals_say_the_next_step() {
    let cache = Cache::new();
    let said = ["org/mill", "no token in HF_TOKEN", "hf/token", "accept its licence", "set HF_TOKEN"];
    fails_with(&mut cache.pull(&gated(401)), 3, &said);
    fails_with(&mut cache.pull(&gated(403)), 3, &said);
    fails_with(
        cache.pull(&gated(401)).env("HF_TOKEN", "hf_other"),
        3,
        &["from HF_TOKEN", "wrong or expired"],
    );
    let licence = ["from HF_TOKEN", "accept the model's licence at http://127.0.0.1", "/org/mill"];
    fails_with(cache.pull(&gated(403)).env("HF_TOKEN", "hf_other"), 3, &licence);
    fails_with(cache.pull(&gated(404)).env("HF_TOKEN", "hf_other"), 3, &["org/mill", "no such model"]);
    let output = cache.pull(&gated(403)).env("HF_TOKEN", "hf_other").output().expect("runs");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hf_other"), "a token in a message");

    let hub = Hub::honest(&[(FILE, noise(10, 1))]);
    fails_with(cache.pull(&hub).env("HF_TOKEN", "two words"), 2, &["HF_TOKEN holds no token"]);
    fails_with(cache.pull(&hub).env("HF_HUB_OFFLINE", "1"), 2, &["HF_HUB_OFFLINE"]);
    fails_with(cache.pull(&hub).env("HF_ENDPOINT", "nonsense"), 2, &["HF_ENDPOINT"]);
    fails_with(cache.pull(&hub).env("HF_ENDPOINT", "ftp://x"), 2, &["HF_ENDPOINT"]);
    assert_eq!(hub.asked().len(), 0);
}
