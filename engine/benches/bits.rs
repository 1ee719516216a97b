//! What a dtype costs in quality: bits per byte of a text, one Markdown row a model.
//!
//! `cargo bench -p statescope-engine --bench bits -- --text FILE --models DIR,DIR… [--dtypes f32,bf16,q8] [--tokens 65536] [--window 512]`
//!
//! The text is cut into windows that are read on their own; the first token of each is given. Bits per byte are comparable between
//! models with different tokenizers, and between dtypes.

use statescope_engine::hooks::Hooks;
use statescope_engine::loader::Tokenizer;
use statescope_engine::model::{Logits, Model};
use statescope_engine::open::open_model;
use statescope_engine::protocol::{ModelSource, TokenId};
use statescope_kernels::matrix::Dtype;
use statescope_kernels::reduce::log_sum_exp;

/// The value that follows `name` on the command line.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn number(name: &str, default: usize) -> usize {
    option(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Bits per byte of `tokens` in windows.
fn bits_per_byte(model: &Model, tokenizer: &Tokenizer, tokens: &[TokenId], window: usize) -> f64 {
    let vocab = model.spec().vocab_size;
    let (mut bits, mut bytes) = (0.0, 0);
    for window in tokens.chunks(window) {
        let mut logits = Vec::new();
        model.forward(window, 0, &mut model.slots(), &mut Hooks::none(), Logits::All(&mut logits));
        for (logits, &next) in logits.chunks_exact(vocab).zip(&window[1..]) {
            bits += f64::from(log_sum_exp(logits) - logits[next as usize]) / std::f64::consts::LN_2;
            bytes += tokenizer.bytes(next).len();
        }
    }
    bits / bytes as f64
}

fn main() {
    let (Some(path), Some(models)) = (option("--text"), option("--models")) else {
        return println!("give --text FILE and --models DIR,DIR");
    };
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = String::from_utf8_lossy(&text);
    let dtypes = option("--dtypes").unwrap_or_else(|| "f32,bf16,q8".to_owned());
    let dtypes: Vec<Dtype> = dtypes.split(',').map(|d| d.parse().unwrap_or_else(|error| panic!("{error}"))).collect();
    println!("| bits per byte | {} |", dtypes.iter().map(Dtype::to_string).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---:|".repeat(dtypes.len()));
    for source in models.split(',') {
        let source: ModelSource = source.parse().unwrap_or_else(|never| match never {});
        let mut row = String::new();
        for &dtype in &dtypes {
            let opened = open_model(&source, Some(dtype), |_| true);
            let (model, tokenizer, info) = opened.unwrap_or_else(|error| panic!("{error}"));
            let tokenizer = tokenizer.unwrap_or_else(|| panic!("{source} has no tokenizer"));
            let mut tokens = tokenizer.encode(&text).unwrap_or_else(|error| panic!("{error}"));
            tokens.truncate(number("--tokens", 1 << 16));
            if row.is_empty() {
                row = format!("| `{}` |", info.name);
            }
            row += &format!(" {:.5} |", bits_per_byte(&model, &tokenizer, &tokens, number("--window", 512)));
        }
        println!("{row}");
    }
}
