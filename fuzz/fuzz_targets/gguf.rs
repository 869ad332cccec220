//! Any bytes as a GGUF file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_files::gguf;

fuzz_target!(|file: &[u8]| {
    if let Ok((index, meta)) = gguf::open_bytes(file, "fuzz.gguf".as_ref()) {
        let _ = meta.check();
        for tensor in index.iter() {
            assert!(tensor.spans.iter().all(|span| span.offset + span.bytes <= file.len() as u64));
            assert_eq!(tensor.slice_rows(0..tensor.rows()).unwrap().bytes(), tensor.bytes());
        }
    }
});
