//! One pass over tokens, and what the model expects after each of them.

use statescope_kernels::reduce::log_sum_exp;

use crate::hooks::Hooks;
use crate::model::Logits;
use crate::protocol::{Candidate, Prediction, TokenId};
use crate::runner::{DeviceError, Memory, Outlook, Runner};

/// A candidate as the session knows it: (id, probability).
pub type RankedToken = (TokenId, f32);

/// What the model expects after a token; ids instead of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    pub entropy_bits: f32,
    pub surprisal_bits: Option<f32>,
    pub candidates: Vec<RankedToken>,
}

/// The logits of the last processed token `[V]`, empty before the first, and ln Σ eˣ of them where that is known.
#[derive(Default)]
pub(crate) struct Latest {
    pub logits: Vec<f32>,
    pub normaliser: Option<f32>,
}

impl Latest {
    /// −log₂ p(token), none before the first.
    fn surprisal(&self, token: TokenId) -> Option<f32> {
        let logit = self.logits.get(token as usize)?;
        Some((self.normaliser.unwrap_or_else(|| log_sum_exp(&self.logits)) - logit) / std::f32::consts::LN_2)
    }
}

/// Tokens to read.
pub(crate) struct Pass<'a> {
    pub tokens: &'a [TokenId],
    pub first: usize,
    /// To rank at every token; 0 ranks none.
    pub candidates: usize,
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
        let Pass { tokens, first, candidates } = *self;
        if candidates == 0 {
            latest.normaliser = None;
            runner.forward(tokens, first, memory, &mut hooks, Logits::Last(&mut latest.logits))?;
            return Ok(Vec::new());
        }
        let (outlooks, logits) = runner.forward_ranked(tokens, first, memory, &mut hooks, candidates)?;
        let foretold = first > runner.model().spec().meta_tokens;
        let mut surprisal_bits = latest.surprisal(tokens[0]).filter(|_| foretold);
        *latest = Latest { logits, normaliser: outlooks.last().map(|outlook| outlook.log_sum_exp) };
        let expectations = outlooks.into_iter().map(|outlook| {
            let Outlook { log_sum_exp: z, entropy_bits, next_logit, candidates } = outlook;
            let next = next_logit.map(|logit| (z - logit) / std::f32::consts::LN_2);
            let surprisal_bits = std::mem::replace(&mut surprisal_bits, next);
            let candidates = candidates.into_iter().map(|(id, logit)| (id, (logit - z).exp())).collect();
            Expectation { entropy_bits, surprisal_bits, candidates }
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
