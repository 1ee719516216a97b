//! The program: a verb works without a window, without a verb the window opens.

mod cli;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use statescope::{Options, window};
use statescope_engine::protocol::{Dtype, ModelSource};

/// An oscilloscope for sequence models: watch states, gates and mixing matrices while the text is being generated.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<cli::Verb>,
    /// builtin:NAME, a folder with config.json and *.safetensors, or a GGUF file
    #[arg(long, value_name = "M")]
    model: Option<ModelSource>,
    /// How to draw [default: wgpu with a graphics processor, else glow]
    #[arg(long)]
    renderer: Option<Renderer>,
    /// Where to compute; cuda is the first NVIDIA GPU
    #[arg(long, default_value = "cpu")]
    device: cli::Place,
    /// Most GPU memory to take, in GiB, also if the GPU is chosen later [default: what is free]
    #[arg(long, value_name = "GIB", value_parser = cli::gibibytes)]
    gpu_memory: Option<usize>,
    /// What to hold the weights in: f32, bf16, f16 or q8 [default: the file's own]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Threads that share the work [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Renderer {
    Glow,
    Wgpu,
}

fn main() -> ExitCode {
    let arguments: Arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match arguments.verb {
        Some(verb) => cli::run(verb),
        None => open(&arguments),
    }
}

fn open(arguments: &Arguments) -> ExitCode {
    if let Some(reason) = window::missing_display() {
        return cli::no_display(reason);
    }
    let device = match arguments.device.device() {
        Ok(device) => device,
        Err(error) => return cli::fail(&error.to_string()),
    };
    if let Some(threads) = arguments.threads {
        statescope_engine::set_threads(threads.into());
    }
    let renderer = arguments.renderer.map(|renderer| match renderer {
        Renderer::Glow => eframe::Renderer::Glow,
        Renderer::Wgpu => eframe::Renderer::Wgpu,
    });
    let options = Options {
        model: arguments.model.clone(),
        dtype: arguments.dtype,
        device,
        gpu_memory: arguments.gpu_memory,
        system_fonts: true,
        ..Options::default()
    };
    match window::open(renderer, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::no_display(&error.to_string()),
    }
}
