//! The gated delta rule, token by token (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks").
//!
//! A column of the state depends on no other column, so a head is cut into strips of columns. With `S` before the
//! token, `S' = g S + k d^T` and `d = beta (v - g S^T k)`, the output is `S'^T q = g S^T q + (k . q) d`: both products
//! read the old state, and the pass that writes the state for one token reads it for the next. Keys and
//! queries stay as they are; what makes them unit vectors goes into the few factors of a token.

use crate::cpu::isa::{Isa, for_each_isa};
use crate::cpu::math::{dots, exp, sigmoid, sum_of_squares};
use crate::cpu::shared::Parts;
use crate::cpu::wide::{LANES, Wide, for_each_width};
use crate::ops::DeltaSpec;
use crate::reference::{L2_EPS, softplus};

/// Vectors of a strip that is copied to stay in the first-level cache over many tokens.
const COPIED: usize = 2;
/// Vectors of a strip for few tokens, which is read where it lies: whole heads, mostly.
const IN_PLACE: usize = 8;
/// Fewer tokens than this do not pay for a copy.
const COPY_ROWS: usize = 4;

/// What [`delta_rule`] works on; rows are those of the segment.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Delta<'a> {
    pub isa: Isa,
    pub spec: &'a DeltaSpec,
    /// `[rows, channels]`
    pub qkv: &'a [f32],
    /// `[rows, value_heads]`
    pub a: &'a [f32],
    /// `[rows, value_heads]`
    pub b: &'a [f32],
    pub decay: &'a [f32],
    pub dt_bias: &'a [f32],
    /// `[value_heads, key_head_dim, value_head_dim]`
    pub state: Parts<'a, f32>,
    /// `[rows, value_heads * value_head_dim]`
    pub out: Parts<'a, f32>,
}

impl Delta<'_> {
    /// Tokens.
    fn rows(&self) -> usize {
        self.qkv.len() / self.spec.channels()
    }

    /// Values that [`factors`] makes for a row: three for a key head, then two for a value head.
    pub(in crate::cpu) fn factors(&self) -> usize {
        3 * self.spec.key_heads + 2 * self.spec.value_heads
    }

    fn is_in_place(&self) -> bool {
        self.rows() < COPY_ROWS && self.spec.value_head_dim.is_multiple_of(LANES)
    }

    /// Columns of a strip.
    pub(in crate::cpu) fn strip(&self) -> usize {
        LANES * if self.is_in_place() { IN_PLACE } else { COPIED }
    }
}

for_each_isa! {
    /// The factors of row `row`: of each key head, what makes its query and its key unit vectors (the query also over
    /// `sqrt(key_head_dim)`), and the product of the two; of each value head, `g` and `beta`.
    pub(in crate::cpu) fn factors(delta: Delta<'_>, row: usize, out: &mut [f32]) {
        let spec = delta.spec;
        let (dk, heads) = (spec.key_head_dim, spec.value_heads);
        let qkv = &delta.qkv[row * spec.channels()..][..2 * spec.key_heads * dk];
        let (queries, keys) = qkv.split_at(spec.key_heads * dk);
        let (of_keys, of_values) = out.split_at_mut(3 * spec.key_heads);
        for (h, out) in of_keys.chunks_exact_mut(3).enumerate() {
            let (q, k) = (&queries[h * dk..][..dk], &keys[h * dk..][..dk]);
            out[0] = 1.0 / (dk as f32).sqrt() / (sum_of_squares(q) + L2_EPS).sqrt();
            out[1] = 1.0 / (sum_of_squares(k) + L2_EPS).sqrt();
            out[2] = dots([q], k)[0] * out[0] * out[1];
        }
        for (h, out) in of_values.chunks_exact_mut(2).enumerate() {
            let at = row * heads + h;
            out[0] = exp(delta.decay[h] * softplus(delta.a[at] + delta.dt_bias[h]));
            out[1] = sigmoid(delta.b[at]);
        }
    }
}

/// Columns `start ..`, at most [`Delta::strip`] of them, of value head `head` over all rows; `factors` are those of all
/// rows, and `copy` has room for a strip.
///
/// # Safety
/// Nobody else accesses these columns of the state and the output.
pub(in crate::cpu) unsafe fn delta_rule(
    delta: Delta<'_>,
    factors: &[f32],
    head: usize,
    start: usize,
    copy: &mut Vec<f32>,
) {
    let (dk, dv) = (delta.spec.key_head_dim, delta.spec.value_head_dim);
    let len = delta.strip().min(dv - start);
    let key_head = delta.spec.key_head(head);
    let tokens = Tokens { delta, factors, head, key_head, start, len };
    if delta.is_in_place() {
        // SAFETY: these columns belong to this call.
        let state = unsafe { delta.state.part((head * dk) * dv + start, (dk - 1) * dv + len) };
        // SAFETY: `dk` rows of `len` values, a whole number of vectors, lie `dv` apart.
        return unsafe { in_place(delta.isa, tokens, state) };
    }
    let width = COPIED * LANES;
    copy.clear();
    copy.resize(dk * width, 0.0);
    for (i, row) in copy.chunks_exact_mut(width).enumerate() {
        // SAFETY: these columns belong to this call.
        row[..len].copy_from_slice(unsafe { delta.state.part((head * dk + i) * dv + start, len) });
    }
    // SAFETY: `dk` rows of a strip.
    unsafe { copied(delta.isa, tokens, copy) };
    for (i, row) in copy.chunks_exact(width).enumerate() {
        // SAFETY: as above.
        unsafe { delta.state.part((head * dk + i) * dv + start, len) }.copy_from_slice(&row[..len]);
    }
}

/// The columns of one call, and where a row's numbers are.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    delta: Delta<'a>,
    factors: &'a [f32],
    head: usize,
    key_head: usize,
    start: usize,
    len: usize,
}

/// What a token does to a state.
#[derive(Clone, Copy)]
struct Token {
    q: *const f32,
    k: *const f32,
    q_scale: f32,
    k_scale: f32,
    qk: f32,
    g: f32,
    beta: f32,
}

impl Tokens<'_> {
    #[inline(always)]
    fn token(&self, row: usize) -> Token {
        let spec = self.delta.spec;
        let dk = spec.key_head_dim;
        let qkv = &self.delta.qkv[row * spec.channels()..][..2 * spec.key_heads * dk];
        let factors = &self.factors[row * self.delta.factors()..][..self.delta.factors()];
        let of_key = &factors[3 * self.key_head..][..3];
        let of_value = &factors[3 * spec.key_heads + 2 * self.head..][..2];
        Token {
            q: qkv[self.key_head * dk..][..dk].as_ptr(),
            k: qkv[(spec.key_heads + self.key_head) * dk..][..dk].as_ptr(),
            q_scale: of_key[0],
            k_scale: of_key[1],
            qk: of_key[2],
            g: of_value[0],
            beta: of_value[1],
        }
    }
}

for_each_width! {
    /// Columns where they lie.
    ///
    /// # Safety
    /// `state` holds `dk` rows of `len` values, a whole number of vectors, `dv` apart.
    unsafe fn in_place<W>(tokens: Tokens<'_>, state: &mut [f32]) {
        let (stride, mut at) = (tokens.delta.spec.value_head_dim, 0);
        // SAFETY: the caller's promise; strips stay inside `len`.
        unsafe {
            while W::TILE == 4 && at + IN_PLACE * LANES <= tokens.len {
                run::<W, IN_PLACE>(&tokens, state.as_mut_ptr().add(at), stride, at);
                at += IN_PLACE * LANES;
            }
            while at + 2 * LANES <= tokens.len {
                run::<W, 2>(&tokens, state.as_mut_ptr().add(at), stride, at);
                at += 2 * LANES;
            }
            while at < tokens.len {
                run::<W, 1>(&tokens, state.as_mut_ptr().add(at), stride, at);
                at += LANES;
            }
        }
    }
}

for_each_width! {
    /// A copy of the columns, padded.
    ///
    /// # Safety
    /// `state` holds `dk` rows of `COPIED` vectors.
    unsafe fn copied<W>(tokens: Tokens<'_>, state: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { run::<W, COPIED>(&tokens, state.as_mut_ptr(), COPIED * LANES, 0) }
    }
}

/// All tokens over `N` vectors of columns, `at` after the first; rows of the state are `stride` values apart.
#[inline(always)]
unsafe fn run<W: Wide, const N: usize>(tokens: &Tokens<'_>, state: *mut f32, stride: usize, at: usize) {
    let delta = &tokens.delta;
    let (spec, rows) = (delta.spec, delta.rows());
    let (dk, dv) = (spec.key_head_dim, spec.value_head_dim);
    let (column, len) = (tokens.head * dv + tokens.start + at, (tokens.len - at).min(N * LANES));
    let mut token = tokens.token(0);
    // SAFETY: the caller's promise; keys and queries have `dk` values, as `token` checked.
    unsafe {
        let mut memory = [W::splat(0.0); N];
        let mut outputs = [W::splat(0.0); N];
        for i in 0..dk {
            let (k, q) = (W::splat(*token.k.add(i)), W::splat(*token.q.add(i)));
            for n in 0..N {
                let s = W::load(state.add(i * stride + n * LANES));
                memory[n] = k.fma(s, memory[n]);
                outputs[n] = q.fma(s, outputs[n]);
            }
        }
        for row in 0..rows {
            let values = &delta.qkv[row * spec.channels() + 2 * spec.key_heads * dk + column..][..len];
            let mut change = [W::splat(0.0); N];
            let mut buffer = [[0.0f32; LANES]; N];
            buffer.as_flattened_mut()[..len].copy_from_slice(values);
            for n in 0..N {
                let value = W::load(buffer[n].as_ptr());
                let forget = W::splat(-(token.g * token.k_scale));
                let d = memory[n].fma(forget, value).mul(W::splat(token.beta));
                let kept = outputs[n].mul(W::splat(token.g * token.q_scale));
                d.fma(W::splat(token.qk), kept).store(buffer[n].as_mut_ptr());
                change[n] = d.mul(W::splat(token.k_scale));
                memory[n] = W::splat(0.0);
                outputs[n] = W::splat(0.0);
            }
            delta
                .out
                .part(row * spec.value_heads * dv + column, len)
                .copy_from_slice(&buffer.as_flattened()[..len]);
            let g = W::splat(token.g);
            let next = tokens.token((row + 1).min(rows - 1));
            for i in 0..dk {
                let key = W::splat(*token.k.add(i));
                let (k, q) = (W::splat(*next.k.add(i)), W::splat(*next.q.add(i)));
                for n in 0..N {
                    let at = state.add(i * stride + n * LANES);
                    let s = key.fma(change[n], W::load(at).mul(g));
                    s.store(at);
                    // After the last token these are for nobody.
                    memory[n] = k.fma(s, memory[n]);
                    outputs[n] = q.fma(s, outputs[n]);
                }
            }
            token = next;
        }
    }
}
