//! Any bytes as a `config.json` (its length in the first two bytes) and a safetensors file after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_files::safetensors;

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (config, file) = rest.split_at(length);
    if let Ok((index, meta)) = safetensors::open_bytes(file, &String::from_utf8_lossy(config)) {
        let _ = meta.check();
        for tensor in index.iter() {
            assert!(tensor.spans.iter().all(|span| span.offset + span.bytes <= file.len() as u64));
            assert_eq!(tensor.slice_rows(0..tensor.rows()).unwrap().bytes(), tensor.bytes());
        }
    }
});
