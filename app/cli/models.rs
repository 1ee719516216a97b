//! `models`: the built-in models, one a line.

use std::io::Write;

use anyhow::Result;
use statescope_engine::builtin;

/// Name, kind and parameters of every built-in model.
pub fn run(out: &mut impl Write) -> Result<()> {
    let models = builtin::list();
    if models.is_empty() {
        super::say("note: this build has no built-in models; give a folder as --model");
    }
    for model in models {
        let (kind, parameters) = model.summary.rsplit_once(", ").unwrap_or((model.summary, ""));
        writeln!(out, "{:<12}  {kind:<44}  {parameters}", model.name)?;
    }
    Ok(())
}
