//! Plain f32 kernels that the compiler vectorises; also the whole of [`crate::ops::Precision::Exact`].

mod attention;
mod combine;
mod conv;
mod delta;
mod linear;
mod norm;
mod rope;
mod route;

pub(super) use attention::{Append, Attention, append, attention};
pub(super) use combine::{add, add_parts, begin_sum};
pub(super) use conv::{Conv, WIDTH as CONV_CHANNELS, short_conv};
pub(super) use delta::{Delta, delta_rule, factors};
pub(super) use linear::{products_of, silu_mul};
pub(super) use norm::{gated_norm, rms_norm};
pub(super) use rope::norm_rope;
pub(super) use route::choose;
