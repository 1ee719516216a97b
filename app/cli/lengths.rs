//! `bench --after 1,1000,1000000`: what a token costs after so many others. Constant for a recurrent state, growing for a KV cache.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use statescope_engine::protocol::{Observation, Performance, TokenId};

use super::bench::{Engine, process_bytes, round};
use super::info::bytes;

/// Tokens that each measurement makes.
const MEASURED: usize = 128;

/// Makes one long text from `prompt` on and measures on the way, after each of `lengths` tokens.
pub(super) fn run(
    engine: &mut Engine,
    observed: &Observation,
    prompt: TokenId,
    lengths: &[u32],
    as_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut lengths: Vec<usize> = lengths.iter().map(|&length| length.max(1) as usize).collect();
    lengths.sort_unstable();
    lengths.dedup();
    engine.watch(observed, &[prompt])?;
    let mut length = 1;
    let mut rows = Vec::new();
    if !as_json {
        writeln!(
            out,
            "{:>10}  {:>11}  {:>10}  {:>10}  {:>10}  {:>10}",
            "tokens", "ms a token", "state", "KV cache", "record", "process"
        )?;
    }
    for before in lengths {
        length = engine.make(length, before.saturating_sub(length))?;
        engine.settle();
        let began = Instant::now();
        let after = engine.make(length, MEASURED)?;
        let ms = began.elapsed().as_secs_f64() * 1e3 / (after - length) as f64;
        let Performance { state_bytes, kv_bytes, tape_bytes, .. } = engine.performance.clone();
        let process = process_bytes("VmRSS:");
        if as_json {
            rows.push(json!({
                "tokens": length, "ms_per_token": round(ms), "state_bytes": state_bytes, "kv_bytes": kv_bytes,
                "tape_bytes": tape_bytes, "process_bytes": process,
            }));
        } else {
            let [state, cache, tape] = [state_bytes, kv_bytes, tape_bytes].map(bytes);
            let process = process.map_or_else(|| "unknown".into(), bytes);
            writeln!(out, "{length:>10}  {ms:>11.3}  {state:>10}  {cache:>10}  {tape:>10}  {process:>10}")?;
            out.flush()?;
        }
        length = after;
    }
    if as_json {
        writeln!(out, "{}", json!(rows))?;
    }
    Ok(())
}
