//! Properties of every number format: bounded error, checked sizes, no panic on any bytes.

use proptest::prelude::*;
use tidemill_files::quant::{ScaleType, check, decode, encode};
use tidemill_files::{ErrorKind, Format};

/// Two blocks of the largest formats, a whole number of blocks in all.
const VALUES: usize = 512;

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::all())
}

/// Values up to `2^exponent`, with some runs of 32 scaled down and some zeroed.
fn any_values() -> impl Strategy<Value = Vec<f32>> {
    let values = prop::collection::vec(-1f32..=1.0, VALUES);
    let runs = prop::collection::vec(prop::sample::select(vec![0.0, 1e-6, 0.02, 0.7, 1.0, 1.0]), VALUES / 32);
    (values, runs, -12i32..10).prop_map(|(mut values, runs, exponent)| {
        for (i, x) in values.iter_mut().enumerate() {
            *x *= runs[i / 32] * 2f32.powi(exponent);
        }
        values
    })
}

/// The largest error of a value as a fraction of the largest magnitude in its block: half a step, or what the
/// end of a range clips; then what rounding the scales of sub-blocks adds; then the rounding of the scales' type.
fn error_bound(format: Format) -> f32 {
    let exact = match format {
        Format::F32 => return 0.0,
        Format::F16 => return 2f32.powi(-11),
        Format::BF16 => return 2f32.powi(-8),
        Format::Affine { bits, scale, .. } => {
            let unit = match scale {
                ScaleType::F32 => 2f32.powi(-24),
                ScaleType::F16 => 2f32.powi(-11),
                ScaleType::BF16 => 2f32.powi(-8),
            };
            // Moving zero onto the grid may clip the far edge by a step.
            return 2.0 / ((1u32 << bits) - 1) as f32 + 4.0 * unit;
        }
        Format::Q4_0 => 1.0 / 8.0,
        Format::Q4_1 => 1.0 / 15.0,
        Format::Q5_0 => 1.0 / 16.0,
        Format::Q5_1 => 1.0 / 31.0,
        Format::Q8_0 => 0.5 / 127.0,
        Format::Q2K => 1.0 / 3.0 + 1.5 / 15.0,
        Format::Q3K => 1.0 / 4.0 + 1.0 / 32.0,
        Format::Q4K => 1.0 / 15.0 + 1.5 / 63.0,
        Format::Q5K => 1.0 / 31.0 + 1.5 / 63.0,
        Format::Q6K => 1.0 / 32.0 + 1.0 / 128.0,
        Format::IQ4NL => 14.0 / 127.0,
        Format::IQ4XS => 14.0 / 127.0 + 1.0 / 32.0,
        Format::MXFP4 => 1.0 / 4.0,
    };
    exact + 2f32.powi(-9)
}

/// What rounding a scale to a multiple of the smallest f16, `2^-24`, may add in a block of tiny values: half of
/// that times the largest code of a sub-block's scale times that of a value. Blocks that are tinier still vanish.
fn tiny_error(format: Format) -> f32 {
    let largest_code = match format {
        Format::F32 => return 0.0,
        Format::Q2K => 15 * (3 + 1),
        Format::Q3K => 32 * 4,
        Format::Q4K => 63 * (15 + 1),
        Format::Q5K => 63 * (31 + 1),
        Format::Q6K => 128 * 32,
        Format::IQ4XS => 32 * 127,
        // An affine code is within its byte, and so are the others.
        _ => 256,
    };
    largest_code as f32 * 2f32.powi(-25)
}

fn slices(parts: &[Vec<u8>]) -> Vec<&[u8]> {
    parts.iter().map(Vec::as_slice).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2 * ProptestConfig::default().cases, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_what_was_encoded_is_near(format in any_format(), values in any_values()) {
        let parts = encode(format, &values).expect("finite and small");
        let mut out = vec![f32::NAN; VALUES];
        decode(format, &slices(&parts), &mut out).expect("the encoder's sizes");
        let block = format.block().0;
        for (b, (xs, ys)) in values.chunks(block).zip(out.chunks(block)).enumerate() {
            let amax = xs.iter().fold(0f32, |m, x| m.max(x.abs()));
            let bound = amax * error_bound(format) + tiny_error(format);
            for (x, y) in xs.iter().zip(ys) {
                prop_assert!((x - y).abs() <= bound, "{format}: block {b}: {x} came back as {y}, amax {amax}");
            }
        }
    }

    #[test]
    fn any_bytes_decode_and_what_passes_the_check_is_finite(
        format in any_format(),
        bytes in prop::collection::vec(any::<u8>(), 4 * VALUES),
    ) {
        let part = |i| format.row_bytes(i, VALUES).expect("whole blocks");
        let parts: Vec<&[u8]> = (0..format.parts()).map(|i| &bytes[i..][..part(i).min(bytes.len() - i)]).collect();
        let mut out = vec![0.0; VALUES];
        decode(format, &parts, &mut out).expect("any bytes of the right size");
        let finite = out.iter().all(|x| x.is_finite());
        match check(format, &parts) {
            Ok(()) => prop_assert!(finite, "{format}: passed the check, but not all is finite"),
            Err(e) => prop_assert_eq!(e.kind(), ErrorKind::Corrupt),
        }
    }

    #[test]
    fn any_affine_parameters_give_sizes_or_an_error(bits in any::<u8>(), group in any::<u8>(), cols in 0usize..1000) {
        let format = Format::Affine { bits, group, scale: ScaleType::F16 };
        let exists = [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group);
        let size = format.row_bytes(0, cols);
        prop_assert_eq!(size.is_ok(), exists && cols.is_multiple_of(group as usize));
        prop_assert_eq!(decode(format, &[&[], &[], &[]], &mut []).is_ok(), exists);
        prop_assert_eq!(check(format, &[&[], &[], &[]]).is_ok(), exists);
    }
}

#[test]
fn wrong_sizes_are_errors_that_name_the_format() {
    for format in Format::all() {
        let parts = encode(format, &[1.0; VALUES]).expect("encodes");
        let mut out = vec![0.0; VALUES];
        for wrong in 0..parts.len() {
            for change in [-1, 1] {
                let mut parts = parts.clone();
                let len = parts[wrong].len().strict_add_signed(change);
                parts[wrong].resize(len, 0);
                let error = decode(format, &slices(&parts), &mut out).expect_err("a wrong size");
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(error.message().starts_with(&format.to_string()), "{error}");
                assert!(check(format, &slices(&parts)).is_err(), "{format}");
            }
        }
        let mut too_many = slices(&parts);
        too_many.push(&[]);
        assert!(decode(format, &too_many, &mut out).is_err(), "{format}");
        assert!(decode(format, &[], &mut out).is_err(), "{format}");
        assert!(check(format, &[]).is_err(), "{format}");
        assert!(decode(format, &slices(&parts), &mut out[1..]).is_err(), "{format}");
    }
}

#[test]
fn encoding_what_cannot_be_held_is_an_error() {
    for format in Format::all() {
        let mut values = vec![1.0; VALUES];
        values[300] = f32::NAN;
        let error = encode(format, &values).expect_err("NaN");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().starts_with(&format.to_string()), "{error}");
        let whole = format.block().0;
        assert_eq!(encode(format, &vec![1.0; whole + 1]).is_err(), whole > 1, "{format}");
    }
    for format in [Format::F16, Format::Q4_0, Format::Q8_0, Format::Q4K, Format::IQ4XS] {
        let error = encode(format, &vec![1e30; VALUES]).expect_err("no f16 scale is that large");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }
}
