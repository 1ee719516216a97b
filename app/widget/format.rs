//! Numbers as text: few digits, always with their unit.

/// Four significant digits; very large and very small ones with a power of ten.
pub fn number(value: f32) -> String {
    digits(value, 4)
}

/// `count` significant digits.
pub fn digits(value: f32, count: usize) -> String {
    let value = f64::from(value);
    if value.is_nan() {
        return "not a number".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "−∞" }.into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let exponent = value.abs().log10().floor() as i32;
    let text = if (-3..6).contains(&exponent) {
        format!("{value:.*}", (count as i32 - 1 - exponent).max(0) as usize)
    } else {
        let text = format!("{value:.*e}", count.saturating_sub(1).min(2));
        // 1.20e-7 reads as a label when written 1.2e-7.
        match text.split_once('e') {
            Some((mantissa, exponent)) if mantissa.contains('.') => {
                format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => text,
        }
    };
    let text = if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    };
    text.replace('-', "−").replace("e−", "e-")
}

/// A number and its unit; an empty unit adds nothing.
pub fn with_unit(value: f32, unit: &str) -> String {
    if unit.is_empty() { number(value) } else { format!("{} {unit}", number(value)) }
}

/// 1.2 MB.
pub fn bytes(count: usize) -> String {
    scaled(count as f64, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

/// 4.5 M.
pub fn count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "k", "M", "G", "T"]).trim_end().to_owned()
}

/// 2,812 tokens/s.
pub fn rate(tokens_per_s: f32) -> String {
    if tokens_per_s < 10.0 {
        format!("{tokens_per_s:.1} tokens/s")
    } else {
        format!("{} tokens/s", thousands(tokens_per_s.round() as usize))
    }
}

/// 94 %.
pub fn percent(share: f32) -> String {
    let value = share * 100.0;
    if !value.is_finite() {
        "–".into()
    } else if value.abs() >= 99.95 || value == 0.0 {
        format!("{value:.0} %")
    } else if value.abs() < 0.1 {
        "< 0.1 %".into()
    } else {
        format!("{value:.1} %")
    }
}

/// 3.1 ms.
pub fn milliseconds(ms: f32) -> String {
    if ms >= 100.0 {
        format!("{ms:.0} ms")
    } else if ms >= 1.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{:.0} µs", ms * 1000.0)
    }
}

/// 1 token, 2 tokens.
pub fn plural(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{} {one}s", thousands(count)) }
}

/// 12,345.
pub fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (k, digit) in digits.chars().enumerate() {
        if k > 0 && (digits.len() - k).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// At most `limit` characters, the end replaced by an ellipsis.
pub fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step * 0.9995 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(1.0), "1");
        assert_eq!(number(-0.123_45), "−0.1235");
        assert_eq!(number(1234.56), "1235");
        assert_eq!(number(3e-7), "3e-7");
        assert_eq!(number(f32::NAN), "not a number");
        assert_eq!(bytes(1_200_000), "1.2 MB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(count(4_500_000), "4.5 M");
        assert_eq!(percent(0.941), "94.1 %");
        assert_eq!(plural(1, "token"), "1 token");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }
}
