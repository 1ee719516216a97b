//! What several verbs share: which model, which tokens, how to sample, and text that arrives in pieces of characters.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::ValueEnum;
use statescope_engine::loader::Tokenizer;
use statescope_engine::open::open_for;
use statescope_engine::place;
use statescope_engine::protocol::{Device, Dtype, ModelInfo, ModelSource, PromptInput, TokenId};
use statescope_engine::runner::{Runner, find_gpu};
use statescope_engine::sampler;

/// Which model, where and in what precision.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// builtin:NAME, a folder with config.json and *.safetensors, or a GGUF file
    #[arg(long, value_name = "M")]
    pub model: ModelSource,
    /// Where to compute; cuda is the first NVIDIA GPU
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Place,
    /// Most GPU memory to take, in GiB; the driver's own share of a few hundred MiB comes on top [default: what is free]
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    gpu_memory: Option<usize>,
    /// What to hold the weights in; q8 is 8 bits, in blocks of 32 with a scale [default: the file's own]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Precision>,
    /// Threads that share the work [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Place {
    Cpu,
    Cuda,
}

impl Place {
    /// # Errors
    /// There is no such device here, or this build cannot use it.
    pub fn device(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => {
                find_gpu()?;
                Ok(Device::Cuda)
            }
        }
    }
}

/// Bytes of so many GiB.
pub fn gibibytes(text: &str) -> Result<usize, String> {
    match text.parse::<f64>() {
        Ok(gib) if gib > 0.0 && gib < 1e6 => Ok((gib * f64::from(1 << 30)) as usize),
        _ => Err("give a number of GiB above 0, such as 0.5 or 8".into()),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    Bf16,
    F16,
    Q8,
}

/// A model ready to run.
pub struct Opened {
    pub runner: Runner,
    pub tokenizer: Option<Tokenizer>,
    pub info: ModelInfo,
}

impl Common {
    /// Checks the device and sets the threads, for verbs that let the engine open the model. Returns what of its memory may be taken, too.
    pub fn prepare(&self) -> Result<(Device, Option<usize>)> {
        if self.model == ModelSource::Path(PathBuf::new()) {
            bail!("--model is empty: give builtin:NAME, a folder with config.json and *.safetensors, or a GGUF file");
        }
        if let Some(threads) = self.threads {
            statescope_engine::set_threads(threads.into());
        }
        let device = self.device.device()?;
        if self.gpu_memory.is_some() && device == Device::Cpu {
            bail!("--gpu-memory is about a GPU, but the model is to run on the CPU: add --device cuda");
        }
        Ok((device, self.gpu_memory))
    }

    pub fn dtype(&self) -> Option<Dtype> {
        self.dtype.map(|precision| match precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
            Precision::F16 => Dtype::F16,
            Precision::Q8 => Dtype::Q8,
        })
    }

    pub fn open(&self) -> Result<Opened> {
        let (device, memory) = self.prepare()?;
        let place = place::Place::open(device, memory)?;
        let (model, tokenizer, mut info) = open_for(&place, &self.model, self.dtype(), |_| true)?;
        let runner = Runner::open(Arc::new(model), &place, &mut info)?;
        for what in &info.device.on_cpu {
            super::say(&format!("note: on the CPU, between two copies: {what}"));
        }
        Ok(Opened { runner, tokenizer, info })
    }
}

impl Opened {
    /// Entries of the tokenizer, if there is one.
    pub fn tokenizer_size(&self) -> Option<usize> {
        self.tokenizer.as_ref().map(Tokenizer::vocab_size)
    }

    /// The tokens of a prompt.
    pub fn encode(&self, input: &PromptInput) -> Result<Vec<TokenId>> {
        match (input, &self.tokenizer) {
            (PromptInput::Tokens(tokens), _) => Ok(tokens.clone()),
            (PromptInput::Text(text), Some(tokenizer)) => Ok(tokenizer.encode(text)?),
            (PromptInput::Text(_), None) => {
                bail!("{} has no tokenizer.json: give --tokens 1,2,3 instead of --prompt", self.info.source)
            }
        }
    }
}

/// The text to start from.
#[derive(Debug, clap::Args)]
pub struct Prompt {
    /// Text to read
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids to read instead of a text, separated by commas; generation then never ends early
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    tokens: Option<String>,
}

impl Prompt {
    pub fn input(&self) -> Result<PromptInput> {
        match (&self.prompt, &self.tokens) {
            (Some(text), None) => Ok(PromptInput::Text(text.clone())),
            (None, Some(ids)) => Ok(PromptInput::Tokens(token_ids(ids)?)),
            (Some(_), Some(_)) => bail!("--prompt and --tokens are both given: choose one"),
            (None, None) => bail!("there is nothing to read: give --prompt TEXT or --tokens 1,2,3"),
        }
    }
}

fn token_ids(text: &str) -> Result<Vec<TokenId>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let ids = text.split(',').map(str::trim);
    ids.map(|id| match id.parse() {
        Ok(id) => Ok(id),
        Err(_) => {
            bail!("--tokens has {id:?}, which is no token id: give whole numbers separated by commas, such as 1,2,3")
        }
    })
    .collect()
}

/// How the next token is drawn.
#[derive(Debug, clap::Args)]
pub struct Sampling {
    /// 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the K most likely tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the smallest set of tokens whose probability reaches P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// The same seed draws the same tokens
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    pub fn checked(&self) -> Result<sampler::Sampling> {
        let Self { temperature, top_k, top_p, seed } = *self;
        let sampling = sampler::Sampling { temperature, top_k, top_p, seed };
        sampling.check().map_err(anyhow::Error::msg)?;
        Ok(sampling)
    }
}

/// Text out of tokens, held back while a character is not complete. All pieces together are `Tokenizer::decode` of all tokens.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The start of a character.
    pending: Vec<u8>,
    /// Whether the first bytes of the text have come, of which the decoder may strip a space.
    begun: bool,
}

impl<'a> TextStream<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pending: Vec::new(), begun: false }
    }

    /// What the token completes.
    pub fn push(&mut self, id: TokenId) -> String {
        let mut bytes = self.tokenizer.bytes(id);
        if !self.begun && !bytes.is_empty() {
            self.begun = true;
            let stripped = bytes[0] == b' ' && !self.tokenizer.decode(&[id]).starts_with(' ');
            bytes.drain(..usize::from(stripped));
        }
        self.pending.append(&mut bytes);
        let bytes = std::mem::take(&mut self.pending);
        let mut text = String::new();
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            // Only at the very end may more bytes make a character of it.
            let unfinished =
                chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if unfinished {
                self.pending = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// What is left at the end: a character that was never completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Said once on stderr where a text grows longer than any the model was trained on.
pub fn context_note(info: &ModelInfo, length: usize, noted: &mut bool) {
    let Some(context) = info.trained_context.filter(|context| length > *context && !*noted) else { return };
    *noted = true;
    super::say(&format!("note: from here on the text is longer than the {context} tokens this model was trained on"));
}
