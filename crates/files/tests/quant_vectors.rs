//! Number formats against vectors from the `gguf` and `mlx` packages (`testdata/quant/make.py`).

use serde_json::Value;
use tidemill_files::quant::{ScaleType, check, decode, encode};
use tidemill_files::{ErrorKind, Format};

struct Vectors {
    data: Vec<u8>,
    index: Value,
}

impl Vectors {
    fn load() -> Self {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/quant");
        let data = std::fs::read(dir.join("vectors.bin")).expect("vectors.bin");
        let index = std::fs::read_to_string(dir.join("vectors.json")).expect("vectors.json");
        Self { data, index: serde_json::from_str(&index).expect("vectors.json parses") }
    }

    fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = Vector<'a>> {
        let entries = self.index.as_array().expect("a list").iter();
        entries.filter(move |e| e["kind"] == kind).map(|entry| Vector { data: &self.data, entry })
    }
}

struct Vector<'a> {
    data: &'a [u8],
    entry: &'a Value,
}

impl<'a> Vector<'a> {
    fn format(&self) -> Format {
        let format = &self.entry["format"];
        if let Some(name) = format.as_str() {
            return Format::PLAIN.into_iter().find(|f| f.to_string() == name).expect("a known format");
        }
        let number = |key: &str| format[key].as_u64().expect("a number") as u8;
        let scale = match format["scale"].as_str() {
            Some("F32") => ScaleType::F32,
            Some("F16") => ScaleType::F16,
            _ => ScaleType::BF16,
        };
        Format::Affine { bits: number("bits"), group: number("group"), scale }
    }

    fn bytes(&self, array: &str) -> &'a [u8] {
        let range = |i: usize| self.entry[array][i].as_u64().expect("a range") as usize;
        &self.data[range(0)..][..range(1)]
    }

    fn floats(&self, array: &str) -> Vec<f32> {
        let words = self.bytes(array).as_chunks::<4>().0;
        words.iter().map(|&word| f32::from_le_bytes(word)).collect()
    }
}

fn decoded(format: Format, parts: &[&[u8]], values: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; values];
    decode(format, parts, &mut out).expect("decodes");
    out
}

fn assert_same_bits(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), e.to_bits(), "{what}: value {i} is {a}, not {e}");
    }
}

#[test]
fn decodes_as_gguf_does_bit_for_bit() {
    let vectors = Vectors::load();
    let mut seen = vec![Format::F32]; // no vector: it is the identity, tested with the encoders
    for vector in vectors.of_kind("decode") {
        let (format, expected) = (vector.format(), vector.floats("values"));
        let bytes = vector.bytes("bytes");
        assert_same_bits(&format.to_string(), &decoded(format, &[bytes], expected.len()), &expected);
        check(format, &[bytes]).expect("the vectors are finite");
        seen.push(format);
    }
    assert!(Format::PLAIN.iter().all(|f| seen.contains(f)), "only {seen:?}");
}

#[test]
fn decodes_from_unaligned_bytes() {
    let vectors = Vectors::load();
    for vector in vectors.of_kind("decode") {
        let mut shifted = vec![0];
        shifted.extend_from_slice(vector.bytes("bytes"));
        let expected = vector.floats("values");
        let actual = decoded(vector.format(), &[&shifted[1..]], expected.len());
        assert_same_bits("shifted by one byte", &actual, &expected);
    }
}

#[test]
fn encodes_the_bytes_that_gguf_does() {
    let vectors = Vectors::load();
    let mut count = 0;
    for vector in vectors.of_kind("encode") {
        let (format, expected) = (vector.format(), vector.bytes("bytes"));
        let parts = encode(format, &vector.floats("input")).expect("encodes");
        let block_bytes = format.block().1;
        for (i, (a, e)) in parts[0].chunks(block_bytes).zip(expected.chunks(block_bytes)).enumerate() {
            assert_eq!(a, e, "{format}: block {i}");
        }
        assert_eq!(parts[0].len(), expected.len());
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn affine_is_q_times_scale_plus_bias_and_mlx_agrees_within_its_rounding() {
    let vectors = Vectors::load();
    let mut seen = Vec::new();
    for vector in vectors.of_kind("affine") {
        let format = vector.format();
        let parts = ["packed", "scales", "biases"].map(|part| vector.bytes(part));
        let expected = vector.floats("values");
        let actual = decoded(format, &parts, expected.len());
        assert_same_bits(&format.to_string(), &actual, &expected);
        check(format, &parts).expect("the vectors are finite");

        // mlx rounds the product and the sum to the type of the scales.
        let Format::Affine { group, scale, .. } = format else { panic!("{format} is not affine") };
        let unit = match scale {
            ScaleType::F32 => f32::EPSILON / 2.0,
            ScaleType::F16 => 2f32.powi(-11),
            ScaleType::BF16 => 2f32.powi(-8),
        };
        let zeros = vec![0; parts[0].len()];
        let biases = decoded(format, &[&zeros, parts[1], parts[2]], expected.len());
        for (i, (a, m)) in actual.iter().zip(vector.floats("mlx")).enumerate() {
            let bound = unit * ((a - biases[i]).abs() + a.abs()) * 1.01;
            assert!(
                (a - m).abs() <= bound,
                "{format}: value {i} (group {}): {a}, mlx {m}",
                i / group as usize
            );
        }
        seen.push(format);
    }
    let affine = |f: &Format| matches!(f, Format::Affine { .. });
    assert!(Format::all().iter().filter(|f| affine(f)).all(|f| seen.contains(f)), "only {seen:?}");
}

#[test]
fn affine_encodes_the_bytes_that_mlx_does() {
    let vectors = Vectors::load();
    for vector in vectors.of_kind("affine") {
        let format = vector.format();
        let parts = encode(format, &vector.floats("input")).expect("encodes");
        for (name, part) in ["packed", "scales", "biases"].into_iter().zip(&parts) {
            assert_eq!(part, vector.bytes(name), "{format}: {name}");
        }
    }
}

#[test]
fn non_finite_scales_decode_and_are_found() {
    let vectors = Vectors::load();
    // Where an f16 scale lies in a block; infinity goes into block 2.
    let scales =
        [(Format::Q4_1, 2), (Format::Q8_0, 0), (Format::Q2K, 82), (Format::Q3K, 108), (Format::Q6K, 208)];
    for (format, offset) in scales {
        let vector = vectors.of_kind("decode").find(|v| v.format() == format).expect("a vector");
        let mut bytes = vector.bytes("bytes").to_vec();
        bytes[2 * format.block().1 + offset..][..2].copy_from_slice(&[0x00, 0x7c]);
        let values = format.block().0;
        let out = decoded(format, &[&bytes], vector.floats("values").len());
        assert!(out[2 * values..3 * values].iter().all(|x| !x.is_finite()), "{format}");
        assert!(out[3 * values..].iter().all(|x| x.is_finite()), "{format}");
        let error = check(format, &[&bytes]).expect_err("an infinite scale");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.message(), format!("{format}: block 2 is not finite"));
    }
}
