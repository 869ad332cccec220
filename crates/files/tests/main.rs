//! The tests of this crate from outside, in one program: linking one takes longer than most of its tests run.

mod common;
mod goldens;
mod hostile_gguf;
mod hostile_safetensors;
mod mutations;
mod quant_properties;
mod quant_vectors;
