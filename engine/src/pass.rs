//! One pass over tokens, and what the model expects after each of them.

use std::cell::OnceCell;

use statescope_kernels::reduce::log_sum_exp;

use crate::hooks::Hooks;
use crate::model::Logits;
use crate::protocol::{Candidate, Prediction, TokenId};
use crate::runner::{DeviceError, Draw, Drawn, Memory, Outlook, Ranked, Runner};

/// A candidate as the session knows it: (id, probability).
pub type RankedToken = (TokenId, f32);

/// What the model expects after a token; ids instead of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    pub entropy_bits: f32,
    pub surprisal_bits: Option<f32>,
    pub candidates: Vec<RankedToken>,
}

/// The logits of the last processed token `[V]`, empty before the first. A device that ranks them keeps them until somebody asks, or until
/// it computes anything else.
pub(crate) struct Latest {
    logits: OnceCell<Vec<f32>>,
    /// ln Σ eˣ of them where that is known.
    normaliser: Option<f32>,
    /// The most likely tokens with their logits, where they were ranked.
    pub ranked: Vec<(TokenId, f32)>,
    /// What the device has drawn of it, as it was told.
    pub drawn: Drawn,
}

impl Default for Latest {
    fn default() -> Self {
        Self::known(Vec::new())
    }
}

impl Latest {
    pub fn known(logits: Vec<f32>) -> Self {
        Self { logits: OnceCell::from(logits), normaliser: None, ranked: Vec::new(), drawn: Drawn::Nothing }
    }

    /// All of them, copied from the device if they are still there. It must be called before `runner` reads anything else.
    pub fn logits(&self, runner: &Runner) -> &[f32] {
        // A device that fails here fails again where that is reported.
        self.logits.get_or_init(|| runner.logits().unwrap_or_default())
    }

    /// −log₂ p(token), none before the first.
    fn surprisal(&self, token: TokenId, runner: &Runner) -> Option<f32> {
        let logit = match (self.logits.get(), self.ranked.iter().find(|(id, _)| *id == token)) {
            (Some(logits), _) => *logits.get(token as usize)?,
            (None, Some((_, logit))) => *logit,
            (None, None) => runner.logit(token).ok()?,
        };
        let normaliser = self.normaliser.unwrap_or_else(|| log_sum_exp(self.logits(runner)));
        Some((normaliser - logit) / std::f32::consts::LN_2)
    }
}

/// Tokens to read.
pub(crate) struct Pass<'a> {
    pub tokens: &'a [TokenId],
    pub first: usize,
    /// To rank at every token; 0 ranks none.
    pub candidates: usize,
    /// Likely tokens that choosing the next one will take, as far as is known.
    pub choice: usize,
    /// How the next one will be drawn, as far as is known.
    pub draw: Option<Draw>,
}

impl Pass<'_> {
    /// Reads them and brings `latest` up to the last. Returns what was expected after each of them, nothing if nothing is ranked.
    pub fn run(
        &self,
        runner: &mut Runner,
        memory: &mut Memory,
        mut hooks: Hooks<'_>,
        latest: &mut Latest,
    ) -> Result<Vec<Expectation>, DeviceError> {
        let Pass { tokens, first, candidates, choice, draw } = *self;
        let foretold = candidates > 0 && first > runner.model().spec().meta_tokens;
        // Before the pass, which may put its logits where the old ones are.
        let mut surprisal_bits = if foretold { latest.surprisal(tokens[0], runner) } else { None };
        let there = runner.ranks(candidates.max(choice));
        let outlooks = if there >= candidates.max(1) {
            let ranked = Ranked { candidates: there, every: candidates > 0, draw };
            let (outlooks, drawn) = runner.forward_there(tokens, first, memory, &mut hooks, ranked)?;
            let last = outlooks.last().cloned().unwrap_or_default();
            *latest =
                Latest { logits: OnceCell::new(), normaliser: Some(last.log_sum_exp), ranked: last.candidates, drawn };
            outlooks
        } else if candidates > 0 {
            let (outlooks, logits) = runner.forward_ranked(tokens, first, memory, &mut hooks, candidates)?;
            let normaliser = outlooks.last().map(|outlook| outlook.log_sum_exp);
            *latest = Latest { normaliser, ..Latest::known(logits) };
            outlooks
        } else {
            let mut logits = latest.logits.take().unwrap_or_default();
            runner.forward(tokens, first, memory, &mut hooks, Logits::Last(&mut logits))?;
            *latest = Latest::known(logits);
            Vec::new()
        };
        if candidates == 0 {
            return Ok(Vec::new());
        }
        let expectations = outlooks.into_iter().map(|outlook| {
            let Outlook { log_sum_exp: z, entropy_bits, next_logit, candidates: ranked } = outlook;
            let next = next_logit.map(|logit| (z - logit) / std::f32::consts::LN_2);
            let surprisal_bits = std::mem::replace(&mut surprisal_bits, next);
            let likely = ranked.into_iter().take(candidates).map(|(id, logit)| (id, (logit - z).exp()));
            Expectation { entropy_bits, surprisal_bits, candidates: likely.collect() }
        });
        Ok(expectations.collect())
    }
}

impl Expectation {
    /// With the texts of the candidates.
    pub fn into_prediction(self, position: usize, spell: impl Fn(TokenId) -> (Vec<u8>, Option<String>)) -> Prediction {
        Prediction {
            position,
            entropy_bits: self.entropy_bits,
            surprisal_bits: self.surprisal_bits,
            candidates: self
                .candidates
                .into_iter()
                .map(|(id, probability)| {
                    let (bytes, special) = spell(id);
                    Candidate { id, bytes, special, probability }
                })
                .collect(),
        }
    }
}
