//! GGML's tensor types (`enum ggml_type` in ggml.h): the numbers in the file, and what they are to us.

use crate::Format;

/// A type that GGML has and Tidemill does not multiply.
pub(super) struct ForeignType {
    number: u32,
    pub(super) name: &'static str,
    /// `(values, bytes)` of one block.
    pub(super) block: (usize, usize),
}

const FORMATS: [(u32, Format); 16] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (3, Format::Q4_1),
    (6, Format::Q5_0),
    (7, Format::Q5_1),
    (8, Format::Q8_0),
    (10, Format::Q2K),
    (11, Format::Q3K),
    (12, Format::Q4K),
    (13, Format::Q5K),
    (14, Format::Q6K),
    (20, Format::IQ4NL),
    (23, Format::IQ4XS),
    (30, Format::BF16),
    (39, Format::MXFP4),
];

const fn foreign_type(number: u32, name: &'static str, values: usize, bytes: usize) -> ForeignType {
    ForeignType { number, name, block: (values, bytes) }
}

const FOREIGN: [ForeignType; 16] = [
    foreign_type(9, "Q8_1", 32, 36),
    foreign_type(15, "Q8_K", 256, 292),
    foreign_type(16, "IQ2_XXS", 256, 66),
    foreign_type(17, "IQ2_XS", 256, 74),
    foreign_type(18, "IQ3_XXS", 256, 98),
    foreign_type(19, "IQ1_S", 256, 50),
    foreign_type(21, "IQ3_S", 256, 110),
    foreign_type(22, "IQ2_S", 256, 82),
    foreign_type(24, "I8", 1, 1),
    foreign_type(25, "I16", 1, 2),
    foreign_type(26, "I32", 1, 4),
    foreign_type(27, "I64", 1, 8),
    foreign_type(28, "F64", 1, 8),
    foreign_type(29, "IQ1_M", 256, 56),
    foreign_type(34, "TQ1_0", 256, 54),
    foreign_type(35, "TQ2_0", 256, 66),
];

/// The format of a type number, if it is one that Tidemill multiplies.
pub(super) fn format(number: u32) -> Option<Format> {
    FORMATS.iter().find(|(n, _)| *n == number).map(|&(_, format)| format)
}

pub(super) fn foreign(number: u32) -> Option<&'static ForeignType> {
    FOREIGN.iter().find(|t| t.number == number)
}

/// GGML's type number of a format; `None` for the affine formats, which GGUF does not have.
pub fn type_number(format: Format) -> Option<u32> {
    FORMATS.iter().find(|(_, f)| *f == format).map(|&(number, _)| number)
}

/// GGML's name of a type number, `"unknown"` when it has none.
pub fn type_name(number: u32) -> String {
    match format(number) {
        Some(format) => format.to_string(),
        None => foreign(number).map_or("unknown", |t| t.name).to_string(),
    }
}
