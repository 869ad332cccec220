//! `tidemill logits`: the hook by which others check our numbers.

use std::path::{Path, PathBuf};

use engine::{Error, RouteRecord, Session};
use serde_json::{Value, json};

use crate::args::ComputeArgs;
use crate::failure::Result;
use crate::interrupt::Work;
use crate::load::{Loaded, count_bar, inputs};
use crate::npy::NpyWriter;
use crate::output::{Outputs, finish_all};
use crate::{out, read};

const EXAMPLES: &str = "\
Examples:
  tidemill logits model.gguf --exact --tokens 1,2,3 --npy out.npy
  tidemill logits mlx-directory --exact --tokens @ids.txt --npy out.npy --routes routes.json

OUT.npy is float32 [positions, vocab]. OUT.json is {\"layers\": [{\"layer\": 0, \"ids\": [[...]], \"weights\": [[...]]}]}, \
with one row a position, for each layer that has routed experts.";

/// Arguments of `logits`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// Token ids, separated by commas or spaces; `@FILE` reads them from a file
    #[arg(long, value_name = "IDS")]
    tokens: String,
    /// Where to write the logits of every position
    #[arg(long, value_name = "OUT.npy")]
    npy: PathBuf,
    /// Where to write the experts that the routers chose
    #[arg(long, value_name = "OUT.json")]
    routes: Option<PathBuf>,
    /// Print one JSON object about what was written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Computes and writes.
pub(crate) fn main(args: &Args) -> Result<()> {
    let tokens = read_tokens(&args.tokens)?;
    let ids = args.tokens.strip_prefix('@').map(PathBuf::from);
    let mut outputs = Outputs::beside(inputs(args.model.as_deref(), &args.compute).iter().chain(&ids));
    let npy = outputs.create(&args.npy)?;
    let routes = args.routes.as_deref().map(|path| outputs.create(path)).transpose()?;
    let loaded = Loaded::open(args.model.as_deref(), &args.compute)?;
    let vocab = loaded.meta().vocab_size;
    let mut session = Session::new(&loaded.model)?;
    if args.routes.is_some() {
        session.record_routes();
    }
    let mut npy = NpyWriter::new(npy, tokens.len(), vocab)?;
    let bar = count_bar("computing", tokens.len() as u64);
    let work = Work::begin();
    session.score(
        &tokens,
        &mut |done, _| {
            bar.set_position(done as u64);
            work.flow()
        },
        &mut |_, logits| npy.row(logits),
    )?;
    bar.finish_and_clear();
    let mut written = vec![npy.into_output()];
    if let Some(mut routes) = routes {
        routes.put(routes_text(&session.take_routes()).as_bytes())?;
        written.push(routes);
    }
    finish_all(written)?;
    if args.json {
        let mut map = serde_json::Map::new();
        map.insert("npy".into(), json!(args.npy));
        map.insert("shape".into(), json!([tokens.len(), vocab]));
        map.extend(loaded.describe());
        return out::json(&Value::Object(map));
    }
    out::note(format_args!("{}: float32 [{}, {vocab}]", args.npy.display(), tokens.len()));
    Ok(())
}

fn read_tokens(given: &str) -> Result<Vec<u32>> {
    let (text, from) = match given.strip_prefix('@') {
        Some(path) => (read::file(Path::new(path))?, path),
        None => (given.to_owned(), "--tokens"),
    };
    let ids = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|id| !id.is_empty());
    let tokens = ids
        .map(|id| id.parse().map_err(|_| Error::invalid(format!("{from}: {id:?} is not a token id"))))
        .collect::<engine::Result<Vec<u32>>>()?;
    if tokens.is_empty() {
        return Err(Error::invalid(format!("{from}: no token ids")).into());
    }
    Ok(tokens)
}

fn routes_text(records: &[RouteRecord]) -> String {
    let mut layers: Vec<u16> = records.iter().map(|r| r.layer.0).collect();
    layers.sort_unstable();
    layers.dedup();
    let of_layer = |layer: u16| {
        // Chunks of a prompt come in order of their positions.
        let records = || records.iter().filter(move |r| r.layer.0 == layer);
        let ids: Vec<&[u32]> = records().flat_map(|r| r.routes.ids.chunks(r.routes.top_k)).collect();
        let weights: Vec<&[f32]> = records().flat_map(|r| r.routes.weights.chunks(r.routes.top_k)).collect();
        json!({"layer": layer, "ids": ids, "weights": weights})
    };
    let layers: Vec<Value> = layers.into_iter().map(of_layer).collect();
    format!("{}\n", json!({ "layers": layers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_separated_by_commas_or_space() {
        let read = |text: &str| read_tokens(text).map_err(|_| ());
        assert_eq!(read("1,2, 3\n4"), Ok(vec![1, 2, 3, 4]));
        for bad in ["", " , ", "1,x", "-1", "4294967296", "@/nowhere/ids"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ids");
        std::fs::write(&file, "7\n8\n").unwrap();
        assert_eq!(read(&format!("@{}", file.display())), Ok(vec![7, 8]));
    }
}
