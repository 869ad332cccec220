//! Plain floats: F32, F16 and BF16, little-endian, one value a block.

use half::{bf16, f16};

use super::ScaleType;

/// Reads value `i` of little-endian floats of type `ty`. F16 and BF16 widen exactly.
///
/// Panics if `bytes` holds fewer than `i + 1` values: the caller has checked its sizes.
#[inline]
pub fn value(ty: ScaleType, bytes: &[u8], i: usize) -> f32 {
    let pair = |i: usize| [bytes[2 * i], bytes[2 * i + 1]];
    match ty {
        ScaleType::F32 => {
            f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        }
        ScaleType::F16 => f16::from_le_bytes(pair(i)).to_f32(),
        ScaleType::BF16 => bf16::from_le_bytes(pair(i)).to_f32(),
    }
}

/// Appends `value` as type `ty`, rounded to nearest, ties to even.
pub(super) fn push(ty: ScaleType, value: f32, bytes: &mut Vec<u8>) {
    match ty {
        ScaleType::F32 => bytes.extend(value.to_le_bytes()),
        ScaleType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
        ScaleType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
    }
}

/// Widens `out.len()` values of type `ty`.
pub(super) fn decode(ty: ScaleType, bytes: &[u8], out: &mut [f32]) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = value(ty, bytes, i);
    }
}
