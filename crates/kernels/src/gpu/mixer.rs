//! Token mixers: attention, the gated delta rule, and what goes with them.

use files::{Error, Result};

use super::encoder::Binding;
use super::segments::{Places, SPAN_UNIT, SPANS_MAX};
use super::work::Work;
use super::{Call, Gpu, State, binding, fours, memory_of, source};
use crate::buffer::Tensor;
use crate::ops::{
    AttentionSpec, Backend as _, DeltaInput, DeltaSpec, Gate, Heads, KvCache, KvFormat, RopeSpec, Segment,
    Turn, rows_of,
};

/// Heads wider than this do not fit a workgroup's memory or a thread's registers.
const HEAD_DIM_MAX: usize = 1024;

fn head_dim(what: &str, dim: usize) -> Result<u32> {
    if dim == 0 || dim > HEAD_DIM_MAX {
        return Err(Error::unsupported(format!("{what} heads of {dim} values on the GPU")));
    }
    Ok(dim as u32)
}

/// The shaders' number of the cache's format.
fn format(cache: &KvCache) -> Result<u32> {
    match cache.format {
        KvFormat::F32 => Ok(0),
        KvFormat::F16 if cache.head_dim.is_multiple_of(2) => Ok(1),
        KvFormat::F16 => Err(Error::unsupported(format!("an f16 cache of {} values a head", cache.head_dim))),
        KvFormat::Q8 => Ok(2),
    }
}

fn bind<'a>(tensor: Option<&'a Tensor>, nothing: Binding<'a>) -> Result<Binding<'a>> {
    tensor.map_or(Ok(nothing), binding)
}

/// Those that have rows.
pub(super) fn with_rows(segments: &[Segment]) -> Vec<&Segment> {
    segments.iter().filter(|segment| !segment.rows.is_empty()).collect()
}

/// What both shaders of the delta rule are told first.
fn delta_params(places: &Places, spec: &DeltaSpec) -> Vec<u32> {
    places.params(&[spec.key_heads, spec.value_heads, spec.value_head_dim].map(|n| n as u32))
}

/// Both multiply and add to a state three times a row.
fn delta_work(input: &DeltaInput<'_>, spec: &DeltaSpec) -> Work {
    let state = (spec.value_heads * spec.key_head_dim * spec.value_head_dim) as f64;
    let (rows, states) = (rows_of(input.segments), with_rows(input.segments).len());
    Work { flops: 6.0 * state * rows as f64, bytes: 4.0 * state * states as f64 }
}

/// Parts of a column of a head's state, each for a thread of `delta_rule.wgsl`.
const DELTA_SLICES: usize = 8;

/// Rows that a thread of `short_conv.wgsl` takes, at least.
const CONV_SPAN: usize = 32;

/// From this many rows on, `delta_rows.wgsl` is worth a dispatch for the norm ...
const DELTA_ROWS_MIN: usize = 4;
/// ... with this many threads for a column of a head's state.
const DELTA_LANES: usize = 8;

/// Query heads that a workgroup of `attention.wgsl` takes at most, and their values: 8 KiB of its memory.
const TILE_HEADS: usize = 8;
const QUERY_VALUES: usize = 2048;

/// What heads of a step's rows go through on their way to attention; there may be no queries, or no keys and values.
struct Way<'a> {
    q: Option<(&'a Tensor, Turn<'a>)>,
    kv: Option<(&'a Tensor, &'a Tensor, &'a KvCache)>,
    /// Of the keys.
    turn: Option<Turn<'a>>,
    frequencies: Option<&'a Tensor>,
    head_dim: usize,
}

impl Gpu {
    pub(super) fn rotate(
        &self,
        x: &mut Tensor,
        segments: &[Segment],
        spec: &RopeSpec,
        frequencies: &Tensor,
        norm: Option<(&Tensor, f32)>,
    ) -> Result<()> {
        let q = Some((&*x, Turn { spec, norm }));
        let way = Way { q, kv: None, turn: None, frequencies: Some(frequencies), head_dim: spec.head_dim };
        self.prepare_heads(segments, &way)
    }

    pub(super) fn append(
        &self,
        k: &Tensor,
        v: &Tensor,
        segments: &[Segment],
        cache: &mut KvCache,
    ) -> Result<()> {
        let (kv, head_dim) = (Some((k, v, &*cache)), cache.head_dim);
        self.prepare_heads(segments, &Way { q: None, kv, turn: None, frequencies: None, head_dim })
    }

    /// Both for queries and keys that turn alike, in one dispatch; false for others.
    pub(super) fn rotate_and_append(
        &self,
        heads: &Heads<'_>,
        segments: &[Segment],
        [q, k]: [Turn<'_>; 2],
        frequencies: &Tensor,
        cache: &mut KvCache,
    ) -> Result<bool> {
        let alike = |s: &RopeSpec| (s.head_dim, s.rotary_dim, s.interleaved, s.amplitude.to_bits());
        if alike(q.spec) != alike(k.spec) || k.spec.head_stride != k.spec.head_dim {
            return Ok(false);
        }
        let way = Way {
            q: Some((&*heads.q, q)),
            kv: Some((&*heads.k, heads.v, &*cache)),
            turn: Some(k),
            frequencies: Some(frequencies),
            head_dim: q.spec.head_dim,
        };
        self.prepare_heads(segments, &way).map(|()| true)
    }

    fn prepare_heads(&self, segments: &[Segment], way: &Way<'_>) -> Result<()> {
        let mut state = self.lock();
        let rows = self.place_rows(&mut state, segments)?;
        let unused = self.unused(&mut state)?;
        // A binding must be something; what a kernel never reads is this.
        let nothing = unused[3].binding();
        let q_turn = way.q.map(|(_, turn)| turn);
        let spec = q_turn.or(way.turn).map(|turn| turn.spec);
        let norms = [q_turn, way.turn].map(|turn| turn.and_then(|turn| turn.norm));
        let (mut format_number, mut kv_heads) = (0, 0);
        let mut cache_bindings = [unused[1].binding(), unused[2].binding()];
        if let Some((_, _, cache)) = way.kv {
            (format_number, kv_heads) = (format(cache)?, cache.kv_heads);
            cache_bindings =
                [memory_of(cache.keys.buffer())?.binding(), memory_of(cache.values.buffer())?.binding()];
        }
        let bindings = [
            way.q.map_or(Ok(unused[0].binding()), |(q, _)| binding(q))?,
            bind(way.kv.map(|(k, _, _)| k), nothing)?,
            bind(way.kv.map(|(_, v, _)| v), nothing)?,
            bind(way.frequencies, nothing)?,
            bind(norms[0].map(|(weight, _)| weight), nothing)?,
            bind(norms[1].map(|(weight, _)| weight), nothing)?,
            cache_bindings[0],
            cache_bindings[1],
            rows.places.binding(),
        ];
        let q_heads = q_turn.map_or(0, |turn| turn.spec.heads);
        let constants = [
            head_dim("rotated or cached", way.head_dim)?,
            u32::from(norms[0].is_some()) + 2 * u32::from(norms[1].is_some()),
            u32::from(spec.is_some_and(|s| s.interleaved)),
            format_number,
        ];
        let eps = norms.map(|norm| norm.map_or(0.0, |(_, eps)| eps).to_bits());
        let params = rows.places.params(&[
            q_heads as u32,
            q_turn.map_or(0, |turn| turn.spec.head_stride) as u32,
            kv_heads as u32,
            spec.map_or(0, |s| s.rotary_dim) as u32,
            spec.map_or(1.0, |s| s.amplitude).to_bits(),
            eps[0],
            eps[1],
        ]);
        let groups = [(q_heads + kv_heads) as u32, rows.count(), 1];
        self.run(
            &mut state,
            &Call {
                kernel: &source::HEADS,
                formats: &[],
                constants: &constants,
                bindings: &bindings,
                params: &params,
                groups,
            },
        )
    }

    pub(super) fn attend(
        &self,
        q: &Tensor,
        segments: &[Segment],
        cache: &KvCache,
        spec: &AttentionSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        let dim = head_dim("attention", spec.head_dim)?;
        if !spec.head_dim.is_multiple_of(4) {
            return Err(Error::unsupported(format!("attention heads of {dim} values on the GPU")));
        }
        let group = spec.heads / cache.kv_heads;
        let tile = group.min((QUERY_VALUES / spec.head_dim).clamp(1, TILE_HEADS));
        let tiles = group.div_ceil(tile);
        let mut state = self.lock();
        let rows = self.place_rows(&mut state, segments)?;
        let (spans, partial_values) = (rows.spans(), rows.pieces * spec.heads * (spec.head_dim + 2));
        let partial = self.scratch(&mut state, "attention", partial_values.max(4) * 4)?;
        let (q, out, gated) = (binding(q)?, binding(out)?, u32::from(spec.gated));
        let (keys, values) = (memory_of(cache.keys.buffer())?, memory_of(cache.values.buffer())?);
        let head_bytes = cache.format.head_bytes(cache.head_dim);
        // Of a row, as if no other had the keys and values at hand.
        let work_of = |&end: &usize| Work {
            flops: 4.0 * (spec.heads * spec.head_dim) as f64 * end as f64,
            bytes: 2.0 * (cache.kv_heads * head_bytes) as f64 * end as f64,
        };
        let mut first = 0;
        while first < rows.ends.len() {
            let (some, work) = self.device.slow.first_items(rows.ends[first..].iter().map(work_of));
            let [first_row, heads, group, tiles, kv_heads, span] =
                [first, spec.heads, group, tiles, cache.kv_heads, rows.span].map(|n| n as u32);
            let scale = spec.scale.to_bits();
            let params = rows.places.params(&[first_row, heads, group, tiles, kv_heads, scale, span]);
            state.work = work;
            self.run(
                &mut state,
                &Call {
                    kernel: &source::ATTENTION,
                    formats: &[],
                    constants: &[dim, format(cache)?, gated, tile as u32, SPAN_UNIT as u32],
                    bindings: &[
                        q,
                        keys.binding(),
                        values.binding(),
                        out,
                        partial.binding(),
                        rows.places.binding(),
                    ],
                    params: &params,
                    groups: [kv_heads * tiles, spans as u32, some as u32],
                },
            )?;
            first += some;
        }
        if rows.pieces == 0 {
            return Ok(());
        }
        self.run(
            &mut state,
            &Call {
                kernel: &source::ATTENTION_MERGE,
                formats: &[],
                constants: &[dim, gated, SPANS_MAX as u32],
                bindings: &[q, partial.binding(), out, rows.places.binding()],
                params: &rows.places.params(&[spec.heads as u32, rows.span as u32]),
                groups: [spec.heads as u32, rows.count(), 1],
            },
        )
    }

    pub(super) fn convolve(
        &self,
        x: &Tensor,
        weight: &Tensor,
        segments: &[Segment],
        conv_state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let segments = with_rows(segments);
        let mut state = self.lock();
        let places = self.place_segments(&mut state, &segments)?;
        let bindings = [binding(x)?, binding(weight)?, binding(conv_state)?, binding(out)?, places.binding()];
        // A span starts with the rows before it, so it has more of them than the kernel sees.
        let span = CONV_SPAN.next_multiple_of(weight.cols().max(1));
        let most = segments.iter().map(|segment| segment.rows.len()).max().unwrap_or(0);
        let across = x.cols().div_ceil(source::SHORT_CONV.threads as usize);
        self.run(
            &mut state,
            &Call {
                kernel: &source::SHORT_CONV,
                formats: &[],
                constants: &[weight.cols() as u32, span as u32],
                bindings: &bindings,
                params: &places.params(&[x.cols() as u32]),
                groups: [across as u32, most.div_ceil(span) as u32, segments.len() as u32],
            },
        )
    }

    pub(super) fn delta(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        gate: Option<Gate<'_>>,
        out: &mut Tensor,
    ) -> Result<()> {
        let by_fours = fours(spec.value_head_dim).min(fours(spec.channels()));
        // Of a head's state, that a workgroup takes.
        let columns = source::DELTA_RULE.threads as usize / DELTA_SLICES * if by_fours == 1 { 4 } else { 1 };
        if let Some(gate) = gate
            && (spec.value_head_dim > columns || self.delta_by_rows(input, spec))
        {
            self.delta(input, spec, state, None, out)?;
            return self.gated_norm(out, gate.z, gate.weight, gate.eps);
        }
        if self.delta_by_rows(input, spec) {
            return self.delta_rows(input, spec, state, out);
        }
        let mut recording = self.lock();
        let segments = with_rows(input.segments);
        let places = self.place_segments(&mut recording, &segments)?;
        let unused = self.unused(&mut recording)?;
        let nothing = unused[0].binding();
        let bindings = [
            binding(input.qkv)?,
            binding(input.qkv)?,
            binding(input.a)?,
            binding(input.b)?,
            binding(input.decay)?,
            binding(input.dt_bias)?,
            bind(gate.map(|gate| gate.z), nothing)?,
            bind(gate.map(|gate| gate.weight), nothing)?,
            binding(state)?,
            binding(out)?,
            places.binding(),
        ];
        let mut params = delta_params(&places, spec);
        params.push(gate.map_or(0.0, |gate| gate.eps).to_bits());
        let key_dim = head_dim("key", spec.key_head_dim)?;
        let constants = [key_dim, u32::from(spec.tiled), u32::from(gate.is_some()), by_fours];
        let across = spec.value_head_dim.div_ceil(columns);
        recording.work = delta_work(input, spec);
        self.run(
            &mut recording,
            &Call {
                kernel: &source::DELTA_RULE,
                formats: &[],
                constants: &constants,
                bindings: &bindings,
                params: &params,
                groups: [spec.value_heads, across, segments.len()].map(|n| n as u32),
            },
        )
    }

    /// Whether `delta_rows.wgsl` takes these rows: all of them if some have the norm in another dispatch anyway.
    fn delta_by_rows(&self, input: &DeltaInput<'_>, spec: &DeltaSpec) -> bool {
        let fours = spec.key_head_dim.is_multiple_of(4 * DELTA_LANES) && spec.channels().is_multiple_of(4);
        let neighbours = !self.device.subgroups || self.device.subgroup_threads as usize >= DELTA_LANES;
        let many = input.segments.iter().any(|segment| segment.rows.len() >= DELTA_ROWS_MIN);
        many && fours && neighbours
    }

    /// The rule over so many rows that a pass for the gated norm after it does not matter.
    fn delta_rows(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let recording: &mut State = &mut self.lock();
        let segments = with_rows(input.segments);
        let places = self.place_segments(recording, &segments)?;
        let qkv = binding(input.qkv)?;
        let bindings = [
            qkv,
            qkv,
            binding(input.a)?,
            binding(input.b)?,
            binding(input.decay)?,
            binding(input.dt_bias)?,
            binding(state)?,
            binding(out)?,
            places.binding(),
        ];
        let columns = source::DELTA_ROWS.threads as usize / DELTA_LANES;
        let across = spec.value_head_dim.div_ceil(columns);
        recording.work = delta_work(input, spec);
        self.run(
            recording,
            &Call {
                kernel: &source::DELTA_ROWS,
                formats: &[],
                constants: &[head_dim("key", spec.key_head_dim)?, u32::from(spec.tiled), DELTA_LANES as u32],
                bindings: &bindings,
                params: &delta_params(&places, spec),
                groups: [spec.value_heads, across, segments.len()].map(|n| n as u32),
            },
        )
    }
}
