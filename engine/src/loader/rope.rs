//! Inverse frequencies of the rotary embedding, in the arithmetic of transformers (f32 after the exponent) so that phases agree.

use std::f32::consts::PI;

use serde_json::Value;

use super::error::ConfigError;
use super::keys::Keys;

/// Inverse frequencies f_j = θ^{−2j/r} of the r leading dims of a head (Su et al. 2021), `[r/2]`, rescaled as `rope_type` says.
///
/// Reads `rope_parameters` (transformers ≥ 5), or `rope_theta` and `rope_scaling` (older). `partial` is the model's own rotary share
/// of the head, or none where the model always rotates whole heads. `max_positions` is the model's `max_position_embeddings`.
///
/// # Errors
/// A `rope_type` other than default, linear and llama3, or numbers that make no sense.
pub fn inverse_frequencies(
    config: Keys,
    head_dim: usize,
    partial: Option<f64>,
    max_positions: usize,
) -> Result<Vec<f32>, ConfigError> {
    let scaling = config.object("rope_scaling", "rope_scaling.")?.filter(|keys| keys.iter().next().is_some());
    let rope = match scaling {
        Some(scaling) => Some(scaling),
        None => config.object("rope_parameters", "rope_parameters.")?,
    };
    let empty = serde_json::Map::new();
    let rope = rope.unwrap_or(Keys::new(&empty, "rope_parameters."));
    if let Some((key, value)) = rope.iter().find(|(key, value)| value.is_object() && key.as_str() != "__float__") {
        return Err(rope.unsupported(key, value, "one set of rotary parameters for all layers"));
    }

    let theta = rope.number(
        "rope_theta",
        config
            .number(if config.get("rotary_emb_base").is_some() { "rotary_emb_base" } else { "rope_theta" }, 10_000.0)?,
    )?;
    if theta <= 0.0 {
        return Err(rope.invalid("rope_theta", &theta.into(), "a number above 0"));
    }
    let share = rope.number("partial_rotary_factor", partial.unwrap_or(1.0))?;
    if partial.is_none() {
        for keys in [rope, config] {
            if let Some(value) = keys.get("partial_rotary_factor").filter(|value| value.as_f64() != Some(1.0)) {
                return Err(keys.unsupported("partial_rotary_factor", value, "1"));
            }
        }
    }
    let rotary_dim = (head_dim as f64 * share) as usize;
    if !(0.0..=1.0).contains(&share) || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(ConfigError::Inconsistent(format!(
            "the rotary embedding would turn {rotary_dim} of the {head_dim} dims of a head (`head_dim` · `partial_rotary_factor`): \
             expected an even number from 2 to {head_dim}"
        )));
    }
    let mut frequencies = plain(theta, rotary_dim);

    let type_key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    match rope.text(type_key)?.unwrap_or("default") {
        "default" => {}
        "linear" => {
            let factor = positive(rope, "factor")?;
            frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => llama3(config, rope, max_positions, &mut frequencies)?,
        other => return Err(rope.unsupported(type_key, &other.into(), "\"default\", \"linear\" or \"llama3\"")),
    }
    Ok(frequencies)
}

/// θ^{−2j/r}, `[r/2]`.
pub fn plain(theta: f64, rotary_dim: usize) -> Vec<f32> {
    let frequency = |j: usize| {
        let exponent = (2 * j) as f32 / rotary_dim as f32;
        1.0 / (f64::from(theta as f32).powf(f64::from(exponent)) as f32)
    };
    (0..rotary_dim / 2).map(frequency).collect()
}

/// Stretches long waves by `factor`, leaves short ones, and blends in between (Llama 3.1).
fn llama3(config: Keys, rope: Keys, max_positions: usize, frequencies: &mut [f32]) -> Result<(), ConfigError> {
    let factor = positive(rope, "factor")?;
    let low = positive(rope, "low_freq_factor")?;
    let high = positive(rope, "high_freq_factor")?;
    if high <= low {
        return Err(rope.invalid("high_freq_factor", &high.into(), "a number above `low_freq_factor`"));
    }
    let key = "original_max_position_embeddings";
    let original = match config.optional_size(key)? {
        Some(original) => original,
        None => rope.size(key, max_positions)?,
    } as f32;
    for f in frequencies {
        let wavelength = 2.0 * PI / *f;
        if wavelength > original / low {
            *f /= factor;
        } else if wavelength >= original / high {
            let smooth = (original / wavelength - low) / (high - low);
            *f = (1.0 - smooth) * *f / factor + smooth * *f;
        }
    }
    Ok(())
}

fn positive(rope: Keys, key: &str) -> Result<f32, ConfigError> {
    let number = rope.number(key, f64::NAN)?;
    if number > 0.0 && (number as f32).is_finite() {
        return Ok(number as f32);
    }
    Err(rope.invalid(key, rope.raw(key).unwrap_or(&Value::Null), "a number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn frequencies(config: Value, head_dim: usize, partial: Option<f64>) -> Result<Vec<f32>, ConfigError> {
        inverse_frequencies(Keys::new(config.as_object().unwrap(), ""), head_dim, partial, 2048)
    }

    #[test]
    fn old_and_new_spellings_agree() {
        let new =
            frequencies(json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}), 8, None).unwrap();
        let old = frequencies(json!({"rope_theta": 500.0, "rope_scaling": null}), 8, None).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.len(), 4);
        assert_eq!(new[0], 1.0);
        assert!((new[2] - 500f32.powf(-0.5)).abs() < 1e-8);
        assert_eq!(frequencies(json!({}), 8, None).unwrap()[2], 0.01);
        let linear =
            frequencies(json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}), 8, None)
                .unwrap();
        assert_eq!(linear, new.iter().map(|f| f / 2.0).collect::<Vec<_>>());
    }

    #[test]
    fn half_of_the_head_rotates_where_the_model_says_so() {
        assert_eq!(frequencies(json!({}), 8, Some(0.5)).unwrap(), [1.0, 0.01]);
        let whole = json!({"rope_parameters": {"partial_rotary_factor": 1.0}});
        assert_eq!(frequencies(whole, 8, Some(0.5)).unwrap().len(), 4);
        let error = frequencies(json!({"partial_rotary_factor": 0.5}), 8, None).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor"), "{error}");
        assert!(frequencies(json!({}), 6, Some(0.5)).is_err());
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let plain = frequencies(json!({"rope_theta": 500_000.0}), 128, None).unwrap();
        let rope = json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let scaled = frequencies(rope, 128, None).unwrap();
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!((0..64).any(|j| scaled[j] < plain[j] && scaled[j] > plain[j] / 8.0));
    }

    #[test]
    fn unknown_types_and_bad_numbers_are_named() {
        for (config, word) in [
            (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "yarn"),
            (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}), "dynamic"),
            (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
            (json!({"rope_theta": "big"}), "rope_theta"),
            (json!({"rope_theta": -1}), "rope_theta"),
            (json!({"rope_scaling": 3}), "rope_scaling"),
            (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "full_attention"),
            (
                json!({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
                "high_freq_factor",
            ),
        ] {
            let error = frequencies(config, 8, None).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
