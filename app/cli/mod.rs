//! The headless verbs: the engine of the window, without the window.
//!
//! | verb | does | file |
//! |---|---|---|
//! | `models` | lists the built-in models | `models.rs` |
//! | `info` | says what a model is made of | `info.rs` · `plan.rs`: its layers |
//! | `generate` | continues a text | `generate.rs` |
//! | `trace` | writes what happens inside to a file | `trace.rs`: the run · `tensors.rs`: what is computed · `trace_file.rs`: the file |
//! | `bench` | measures | `bench.rs` · `screen.rs`: what the window asks for |
//! | `parity` | compares with the official implementation | `parity.rs` |
//!
//! Results go to stdout. Whatever goes wrong is one line on stderr and exit code 2.

mod bench;
mod common;
mod generate;
mod info;
mod lengths;
mod models;
mod parity;
mod plan;
mod screen;
mod tensors;
mod trace;
mod trace_file;

pub use common::{Place, gibibytes};

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::Subcommand;

/// Exit code of every error.
const FAILURE: u8 = 2;

/// A headless verb.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the built-in models: name, kind, parameters
    Models,
    /// Describe a model: architecture, layers, parameters, memory
    Info(info::Args),
    /// Continue a text
    Generate(generate::Args),
    /// Write residuals, gates, states, mixing matrices and logits of a text to a safetensors file
    Trace(trace::Args),
    /// Measure speed and memory
    Bench(bench::Args),
    /// Compare models with what the official implementation recorded beside them, and print a table
    Parity(parity::Args),
}

/// The command line of the program, or the exit code after its help or its one line of error was printed.
pub fn parse<C: clap::Parser>() -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| {
        if error.use_stderr() {
            return fail(&usage_line(&error.to_string()));
        }
        // Help or version; a closed pipe is no error.
        let _ = error.print();
        ExitCode::SUCCESS
    })
}

/// Carries out a verb.
pub fn run(verb: Verb) -> ExitCode {
    let mut out = io::stdout().lock();
    let result = match verb {
        Verb::Models => models::run(&mut out),
        Verb::Info(args) => info::run(&args, &mut out),
        Verb::Generate(args) => generate::run(&args, &mut out),
        Verb::Trace(args) => trace::run(&args, &mut out),
        Verb::Bench(args) => bench::run(&args, &mut out),
        Verb::Parity(args) => parity::run(&args, &mut out),
    };
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // All other reads and writes say what they were about; a bare error is that of stdout.
        Err(error) => match error.downcast_ref::<io::Error>() {
            // The reader, such as `head`, has seen enough.
            Some(problem) if problem.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Some(problem) => fail(&format!("cannot write to standard output: {problem}")),
            None => fail(&format!("{error:#}")),
        },
    }
}

/// What the plain command says where no window can be opened.
pub fn no_display(reason: &str) -> ExitCode {
    fail(&format!(
        "cannot open a window ({reason}): without a display use `statescope models`, `info`, `generate`, `trace` or `bench`"
    ))
}

/// One line on stderr.
pub fn fail(message: &str) -> ExitCode {
    say(&format!("error: {}", message.split_whitespace().collect::<Vec<_>>().join(" ")));
    ExitCode::from(FAILURE)
}

/// A line on stderr, which may be closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The message of clap's report, without the usage and the pointer to `--help`.
fn usage_line(report: &str) -> String {
    let ends = ["\n\nUsage:", "\n\nFor more information"];
    let end = ends.iter().filter_map(|end| report.find(end)).min().unwrap_or(report.len());
    report[..end].trim_start_matches("error:").replace("\n\n  tip:", ";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_are_one_line() {
        let report = "error: invalid value 'q4' for '--dtype <DTYPE>'\n  [possible values: f32, bf16, f16, q8]\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(report).split_whitespace().collect::<Vec<_>>().join(" "),
            "invalid value 'q4' for '--dtype <DTYPE>' [possible values: f32, bf16, f16, q8]"
        );
        assert_eq!(
            usage_line(
                "error: unexpected argument '--modle' found\n\n  tip: a similar argument exists: '--model'\n\nUsage: x\n"
            ),
            " unexpected argument '--modle' found; a similar argument exists: '--model'"
        );
    }
}
