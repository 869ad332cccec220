//! Same bits for any cache size, thread count, memory budget, read order and chunk size.

use std::path::Path;
use std::sync::Arc;

use store::disk::SimOptions;
use tidemill_engine::{CacheKind, KvFormat, Model, OpenOptions, Session};

use super::tools::{Bits, EIGHT_BIT, PROMPT_TOKENS, all_bits, bits, golden, last_bits, sim, tokens};
use crate::common::{go, open, try_open};

/// The smallest budget that a model accepts, in bytes, from what the refusal says.
pub(crate) fn floor_bytes(path: &Path, options: &OpenOptions) -> u64 {
    let refused = try_open(path, &OpenOptions { memory_bytes: Some(1), ..options.clone() });
    let error = refused.map(|_| ()).expect_err("one byte is too little");
    assert_eq!(error.kind(), tidemill_engine::ErrorKind::Memory, "{error}");
    let said = error.message().split("at least ").nth(1).and_then(|rest| rest.split("MiB").next());
    let mebibytes: u64 = said.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no floor in: {error}"));
    mebibytes << 20
}

/// What changes between two runs that must give the same bits, and its name.
fn variations(path: &Path, base: &OpenOptions, top_k: usize) -> Vec<(String, OpenOptions)> {
    let mut all = Vec::new();
    let mut add = |name: String, change: &dyn Fn(&mut OpenOptions)| {
        let mut options = base.clone();
        change(&mut options);
        all.push((name, options));
    };
    add("two threads".into(), &|o| o.threads = Some(2));
    for chunk in [1, 7, 64] {
        add(format!("chunks of {chunk}"), &|o| o.chunk_tokens = Some(chunk));
    }
    for (chunk, block) in [(64, 16), (64, 1), (50, 7)] {
        add(format!("chunks of {chunk} in blocks of {block}"), &|o| {
            (o.chunk_tokens, o.block_tokens) = (Some(chunk), Some(block));
        });
    }
    if top_k == 0 {
        return all;
    }
    for slots in [1, 2, 5] {
        add(format!("blocks with {slots} slots"), &|o| {
            (o.chunk_tokens, o.block_tokens, o.slots_max) = (Some(64), Some(20), Some(slots));
        });
    }
    for slots in [1, top_k, top_k + 3] {
        add(format!("{slots} slots"), &|o| o.slots_max = Some(slots));
    }
    add("two threads, few slots, odd chunks".into(), &|o| {
        (o.threads, o.slots_max, o.chunk_tokens) = (Some(2), Some(top_k + 1), Some(13));
    });
    let floor = floor_bytes(path, base);
    add("the floor".into(), &|o| o.memory_bytes = Some(floor));
    add("the page cache".into(), &|o| o.cache = CacheKind::Os);
    for seed in 0..4 {
        let (reorder, short_reads) = (seed != 2, seed != 3);
        let disk = sim(path, SimOptions { seed, reorder, short_reads, ..SimOptions::default() });
        add(format!("simulated drive {seed}"), &|o| {
            o.disk = Some(disk.clone());
            o.slots_max = Some(top_k + 2 * seed as usize);
            o.block_tokens = (seed % 2 == 1).then_some(24);
        });
    }
    all
}

fn decode_bits(model: &Arc<Model>, prompt: &[u32], answer: &[u32]) -> Vec<Bits> {
    let mut session = Session::new(model).expect("a session");
    session.set_prompt(prompt, &mut go).expect("runs");
    let mut all = vec![bits(session.logits())];
    for token in answer {
        session.append(&[*token], &mut go).expect("runs");
        all.push(bits(session.logits()));
    }
    all
}

fn check(set: &str, exact: bool, kv_format: Option<KvFormat>) {
    let path = golden(set);
    let base =
        OpenOptions { exact, kv_format, threads: Some(1), context: Some(128), ..OpenOptions::default() };
    let model = open(&path, &base);
    let prompt = tokens(&model, 7, PROMPT_TOKENS);
    let expected = all_bits(&model, &prompt);
    assert_eq!(expected.len(), PROMPT_TOKENS);
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]), "{set}: the logits depend on the token");
    let (head, tail) = prompt.split_at(PROMPT_TOKENS - 6);
    assert_eq!(last_bits(&model, head), expected[head.len() - 1], "{set}: logits of the last token alone");
    for (name, options) in variations(&path, &base, model.top_k()) {
        let other = open(&path, &options);
        assert_eq!(all_bits(&other, &prompt), expected, "{set}, exact {exact}: {name}");
        let decoded = decode_bits(&other, head, tail);
        assert_eq!(decoded, expected[head.len() - 1..], "{set}, exact {exact}: decoding with {name}");
    }
}

macro_rules! same_bits {
    ($($name:ident: $set:literal),+ $(,)?) => {$(
        #[test]
        fn $name() {
            check($set, true, None);
            check($set, false, None);
        }
    )+};
}

same_bits! {
    hybrid_mlx: "qwen3_5_moe-e32/mlx-4bit",
    hybrid_k_quants: "qwen3_5_moe-e32/gguf-Q4_K_M",
    many_experts: "qwen3_5_moe-e512/mlx-4bit",
    experts_mlx: "qwen3_moe-e16/mlx-4bit",
    experts_gguf: "qwen3_moe-e16/gguf-Q8_0",
    hybrid_dense: "qwen3_5-dense/gguf-Q4_0",
    dense: "qwen3-dense/bf16",
    llama: "llama-dense/gguf-Q8_0",
}

#[test]
fn eight_bit_keys_and_values() {
    check(EIGHT_BIT, false, Some(KvFormat::Q8));
}

/// Sessions share the model's slots and working memory; each waits its turn, none sees the other.
#[test]
fn sessions_on_several_threads_do_not_disturb_each_other() {
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3-dense/mlx-4bit"] {
        let path = golden(set);
        let options =
            OpenOptions { exact: true, context: Some(128), slots_max: Some(9), ..OpenOptions::default() };
        let model = open(&path, &options);
        let prompts: Vec<_> = (0..3).map(|seed| tokens(&model, seed, 120)).collect();
        let expected: Vec<_> = prompts.iter().map(|p| last_bits(&model, p)).collect();
        std::thread::scope(|scope| {
            for (prompt, expected) in prompts.iter().zip(&expected) {
                let model = &model;
                scope.spawn(move || {
                    for _ in 0..3 {
                        assert_eq!(&last_bits(model, prompt), expected, "{set}");
                    }
                });
            }
        });
    }
}
