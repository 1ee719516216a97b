//! `generate`: continues a text, token by token, to stdout.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use statescope_engine::loader::Tokenizer;
use statescope_engine::protocol::{FinishReason, ModelInfo, PromptInput, TokenId};
use statescope_engine::sampler;
use statescope_engine::session::{Budgets, Session};

use super::common::{Common, Opened, Prompt, Sampling, TextStream, context_note};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    prompt: Prompt,
    #[command(flatten)]
    sampling: Sampling,
    /// Tokens to add at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// Print one JSON object instead of the text: tokens, text, finish_reason, tokens_per_s
    #[arg(long)]
    json: bool,
}

/// Prints the prompt and its continuation as they are read and made.
pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let (input, sampling) = (args.prompt.input()?, args.sampling.checked()?);
    let opened = args.common.open()?;
    let prompt = opened.encode(&input)?;
    let size = opened.tokenizer_size();
    // Nobody looks inside, so nothing is recorded.
    let budgets = Budgets { tape_bytes: 0, snapshot_bytes: 0 };
    let Opened { runner, tokenizer, info } = opened;
    let mut session = Session::on(runner, size, budgets)?;
    session.start(&prompt)?;

    let mut printer = Printer::new(tokenizer.as_ref(), args.json);
    let mut noted = false;
    context_note(&info, prompt.len(), &mut noted);
    for token in &prompt {
        printer.print(*token, out)?;
    }
    out.flush()?;
    session.read_all();
    let ends = may_end(&input, &info);
    let continuation = continue_text(&mut session, &sampling, args.max_new_tokens, ends, |session, token| {
        context_note(&info, session.history().len(), &mut noted);
        printer.print(token, out)?;
        Ok(out.flush()?)
    });
    // What was made before something went wrong is not lost.
    let reason = continuation.as_ref().map_or("error", |continuation| continuation.reason.label());
    if args.json {
        let tokens = session.history().ids(info.meta_tokens..session.history().len());
        let object = json!({
            "tokens": tokens,
            "text": tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&tokens)),
            "finish_reason": reason,
            "tokens_per_s": continuation.as_ref().map_or(0.0, Continuation::tokens_per_s),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{}", printer.finish())?;
    }
    continuation.map(|_| ())
}

/// The tokens that end a text; none for one given as ids, which never ends early.
pub fn may_end<'a>(input: &PromptInput, info: &'a ModelInfo) -> &'a [TokenId] {
    match input {
        PromptInput::Text(_) => &info.end_tokens,
        PromptInput::Tokens(_) => &[],
    }
}

/// What became of a run.
pub struct Continuation {
    pub made: usize,
    pub reason: FinishReason,
    elapsed: Duration,
}

impl Continuation {
    fn tokens_per_s(&self) -> f64 {
        if self.made == 0 { 0.0 } else { self.made as f64 / self.elapsed.as_secs_f64().max(1e-9) }
    }
}

/// Makes up to `count` tokens, or until one of `ends`. `told` hears of every token right after it was drawn; when it is called for
/// the next one, the token before has been read.
pub fn continue_text(
    session: &mut Session,
    sampling: &sampler::Sampling,
    count: usize,
    ends: &[TokenId],
    mut told: impl FnMut(&Session, TokenId) -> Result<()>,
) -> Result<Continuation> {
    let began = Instant::now();
    for made in 0..count {
        session.read_all();
        let token = session.extend(sampling)?;
        told(session, token)?;
        if ends.contains(&token) {
            return Ok(Continuation { made: made + 1, reason: FinishReason::EndOfText, elapsed: began.elapsed() });
        }
    }
    Ok(Continuation { made: count, reason: FinishReason::Length, elapsed: began.elapsed() })
}

/// Prints tokens as text, or as ids separated by commas where there is no tokenizer; nothing where JSON is wanted.
struct Printer<'a> {
    text: Option<TextStream<'a>>,
    silent: bool,
    begun: bool,
}

impl<'a> Printer<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>, silent: bool) -> Self {
        Self { text: tokenizer.map(TextStream::new), silent, begun: false }
    }

    fn print(&mut self, token: TokenId, out: &mut impl Write) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        match &mut self.text {
            Some(text) => write!(out, "{}", text.push(token))?,
            None if self.begun => write!(out, ",{token}")?,
            None => write!(out, "{token}")?,
        }
        self.begun = true;
        Ok(())
    }

    fn finish(self) -> String {
        self.text.map(TextStream::finish).unwrap_or_default()
    }
}
