//! Elementary functions and sums in one fixed order, written so that the compiler vectorises them.
//!
//! No multiply-add is fused unless the code says so: what is rounded is the same for all instruction sets, and so are the
//! bits.

use half::f16;

/// Partial sums of a dot product: value `k` goes to lane `k % LANES`, and the lanes are summed as a tree.
pub(crate) const LANES: usize = 16;

/// `e^x`, within 2 ulp (Cephes' argument reduction and polynomial). 0 below -87.3, infinite above 88.7.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    // Comparisons that let a NaN through.
    let y = if x < -87.3 { -87.3 } else { x };
    let y = if y > 88.7 { 88.7 } else { y };
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = y - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    // 2^n in two factors: n reaches 128, which has no f32 of its own.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let a = f32::from_bits(((half + 127) as u32) << 23);
    let b = f32::from_bits(((n - half + 127) as u32) << 23);
    let value = p * a * b;
    let value = if x < -87.3 { 0.0 } else { value };
    if x > 88.7 { f32::INFINITY } else { value }
}

/// `e^x` for x <= 0, within 2 ulp; 0 below -87.3. With fused multiply-adds and one factor
/// for 2^n, it takes half of the operations of [`exp`].
#[inline(always)]
pub(crate) fn exp_of_negative(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // as above
    // A comparison that lets a NaN through.
    let y = if x < -87.3 { -87.3 } else { x };
    let shifted = y.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, y);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = r.mul_add(p, 1.398_199_9e-3);
    p = r.mul_add(p, 8.333_452e-3);
    p = r.mul_add(p, 4.166_579_6e-2);
    p = r.mul_add(p, 1.666_666_5e-1);
    p = r.mul_add(p, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.3 { 0.0 } else { p * f32::from_bits(power) }
}

/// The nearest bf16. What is next to nothing becomes zero: processors that multiply bf16 have no subnormal numbers.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> f32 {
    const NOTHING: u32 = 0x0da2_4260; // 1e-30
    const INFINITE: u32 = 0x7f80_0000;
    // Integers throughout, with masks: with comparisons of floats the compiler takes one lane after the other.
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let magnitude = bits & 0x7fff_ffff;
    // The carry of a NaN might make a number of it.
    let number = u32::from(magnitude <= INFINITE).wrapping_neg();
    let something = u32::from(magnitude >= NOTHING).wrapping_neg();
    f32::from_bits((nearest & number | bits & !number) & something)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x * sigmoid(x)`
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Widens an IEEE half: exact, without branches.
#[inline(always)]
pub(crate) fn widen(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    // Shifts the exponent's bias from 15 to 127, subnormals included.
    let value = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = magnitude | 0x7f80_0000;
    let value = if bits & 0x7c00 == 0x7c00 { special } else { value.to_bits() };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

/// Sums lanes as a tree.
#[inline(always)]
pub(crate) fn tree_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// Adds `a[k] * b[k]` to lane `k % LANES`.
#[inline(always)]
fn accumulate(lanes: &mut [f32; LANES], a: &[f32], b: &[f32]) {
    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
        *lane += a * b;
    }
}

/// `sum x` in the lanes of a dot product.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += x;
        }
    }
    tree_sum(lanes)
}

/// The dot products of `N` vectors with `w`, all of one length; each as if computed alone.
#[inline(always)]
pub(crate) fn dots<const N: usize>(x: [&[f32]; N], w: &[f32]) -> [f32; N] {
    let mut lanes = [[0.0; LANES]; N];
    let whole = w.len() - w.len() % LANES;
    for k in (0..whole).step_by(LANES) {
        for n in 0..N {
            accumulate(&mut lanes[n], &x[n][k..k + LANES], &w[k..k + LANES]);
        }
    }
    for n in 0..N {
        accumulate(&mut lanes[n], &x[n][whole..], &w[whole..]);
    }
    lanes.map(tree_sum)
}

/// `sum x^2`
#[inline(always)]
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    dots([x], x)[0]
}

/// `1 / sqrt(mean(x^2) + eps)`
#[inline(always)]
pub(crate) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_keeps_the_edges() {
        let mut worst = 0;
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 1.7e-5;
            let (got, want) = (exp(x), f64::from(x).exp() as f32);
            worst = worst.max(got.to_bits().abs_diff(want.to_bits()));
        }
        assert!(worst <= 2, "{worst} ulp");
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(1e30), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan() && silu(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(-200.0), sigmoid(200.0)), (0.0, 1.0));
    }

    #[test]
    fn exp_of_negatives_is_within_two_ulp_and_keeps_the_edges() {
        let mut worst = 0;
        for i in 0..87_300 {
            let x = i as f32 * -1e-3;
            let (got, want) = (exp_of_negative(x), f64::from(x).exp() as f32);
            worst = worst.max(got.to_bits().abs_diff(want.to_bits()));
        }
        assert!(worst <= 2, "{worst} ulp");
        assert_eq!([0.0, -0.0, -88.0, f32::NEG_INFINITY].map(exp_of_negative), [1.0, 1.0, 0.0, 0.0]);
        assert!(exp_of_negative(f32::NAN).is_nan());
    }

    #[test]
    fn rounding_to_bf16_equals_the_half_crate_but_for_next_to_nothing() {
        let mut bits = 0u32;
        while let Some(next) = bits.checked_add(65_521) {
            for x in [f32::from_bits(bits), f32::from_bits(bits | 0x8000), f32::from_bits(bits | 0x7fff)] {
                let (got, want) = (to_bf16(x), half::bf16::from_f32(x).to_f32());
                let same = if x.abs() < 1e-30 { got == 0.0 } else { got.to_bits() == want.to_bits() };
                assert!(same || got.is_nan() && want.is_nan(), "{x}: {got}, not {want}");
            }
            bits = next;
        }
    }

    #[test]
    fn widening_equals_the_half_crate_for_every_half() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            let (got, want) = (widen(x), x.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
        }
    }
}
