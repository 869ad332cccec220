//! Any bytes as a routing trace, their checksum made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_store::policy::Trace;

fuzz_target!(|file: &[u8]| {
    let _ = Trace::decode(file);
    let mut file = file.to_vec();
    let sum = file.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    file.extend(sum.to_le_bytes());
    if let Ok(trace) = Trace::decode(&file) {
        assert_eq!(Trace::decode(&trace.encode().expect("what was decoded is whole")).expect("decodes"), trace);
    }
});
