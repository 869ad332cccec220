//! Any text as a chat template: an error or a prompt, in bounded time and memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_engine::text::{CivilTime, Json, Template};

fuzz_target!(|source: &str| {
    let Ok(template) = Template::new(source) else { return };
    let context = Json::from(serde_json::json!({
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "tools": null,
        "bos_token": "<s>",
        "add_generation_prompt": true,
    }));
    if let Ok(text) = template.render(&context, Some(CivilTime::from_unix(0))) {
        assert!(text.len() < 64 << 20, "{} bytes", text.len());
    }
});
