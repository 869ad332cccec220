//! Any bytes as a `tokenizer.json`: an error, or a tokenizer whose tokens spell the text again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_engine::text::{Specials, Tokenizer};

fuzz_target!(|file: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json_bytes(file) {
        if let Ok(ids) = tokenizer.encode("Two words, ünï and 12", Specials::Ignore) {
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size().max(1)));
            let _ = tokenizer.decode(&ids, true);
        }
    }
});
