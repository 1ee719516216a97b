//! Typed access to the keys of a JSON object that Python wrote.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::error::ConfigError;

/// No size in a config may be larger; the product of any two stays far from overflow.
pub const MAX_SIZE: usize = 1 << 24;

/// Rewrites Python's bare `Infinity`, `-Infinity` and `NaN`, which JSON does not know, as `{"__float__": "Infinity"}` and so on: the
/// spelling of transformers ≥ 5. Text inside strings stays as it is.
pub fn json_from_python(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if in_string {
            if c == '\\' {
                let escape_len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..escape_len]);
                rest = &rest[escape_len..];
                continue;
            }
        } else if let Some(word) = ["Infinity", "-Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word)) {
            out.push_str(&format!("{{\"__float__\": \"{word}\"}}"));
            rest = &rest[word.len()..];
            continue;
        }
        in_string ^= c == '"';
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// The keys of one object of config.json; `within` is where it stands, such as `ssm_cfg.`, for messages.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    within: &'static str,
    /// Which keys were asked for: what a family reads it takes care of.
    read: Option<&'a RefCell<HashSet<String>>>,
}

impl<'a> Keys<'a> {
    pub fn new(map: &'a Map<String, Value>, within: &'static str) -> Self {
        Self { map, within, read: None }
    }

    /// Notes in `read` every key that is asked for.
    pub fn noting(self, read: &'a RefCell<HashSet<String>>) -> Self {
        Self { read: Some(read), ..self }
    }

    /// The value as it stands; `null` is a value.
    pub fn raw(&self, key: &str) -> Option<&'a Value> {
        if let Some(read) = self.read {
            read.borrow_mut().insert(key.to_owned());
        }
        self.map.get(key)
    }

    /// The value, if there is one and it is not `null`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw(key).filter(|value| !value.is_null())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// The object at `key`, if there is one.
    pub fn object(&self, key: &str, within: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys::new(map, within))),
            Some(other) => Err(self.invalid(key, other, "an object")),
        }
    }

    /// A whole number from 1 to [`MAX_SIZE`].
    pub fn size(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// Like [`Keys::size`], without a default.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match whole_number(value) {
            Some(size) if (1..=MAX_SIZE as u64).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.invalid(key, value, &format!("a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    /// A finite number.
    pub fn number(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        float(value).filter(|x| x.is_finite()).ok_or_else(|| self.invalid(key, value, "a finite number"))
    }

    /// A finite factor, as f32.
    pub fn factor(&self, key: &str, default: f64) -> Result<f32, ConfigError> {
        Ok(self.number(key, default)? as f32)
    }

    /// `count` finite factors; ones without the key.
    pub fn factors<const N: usize>(&self, key: &str) -> Result<[f32; N], ConfigError> {
        let Some(value) = self.get(key) else { return Ok([1.0; N]) };
        let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(float).collect());
        let finite = numbers.filter(|numbers| numbers.iter().all(|x| x.is_finite()));
        let factors = finite.and_then(|numbers| <[f64; N]>::try_from(numbers).ok());
        factors
            .map(|factors| factors.map(|x| x as f32))
            .ok_or_else(|| self.invalid(key, value, &format!("{N} numbers")))
    }

    /// A finite number ≥ 0: the epsilon of a norm.
    pub fn epsilon(&self, key: &str, default: f64) -> Result<f32, ConfigError> {
        let number = self.number(key, default)?;
        if number < 0.0 || number > f64::from(f32::MAX) {
            return Err(self.invalid(key, &self.map[key], "a number from 0"));
        }
        Ok(number as f32)
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.invalid(key, other, "true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.invalid(key, other, "a string")),
        }
    }

    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.invalid(key, other, "a list")),
        }
    }

    /// Two numbers lo ≤ hi, either may be infinite; 0 to ∞ without the key.
    pub fn interval(&self, key: &str) -> Result<(f32, f32), ConfigError> {
        let Some(value) = self.get(key) else { return Ok((0.0, f32::INFINITY)) };
        let bounds: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(float).collect());
        match bounds.as_deref() {
            Some(&[lo, hi]) if lo <= hi => Ok((lo as f32, hi as f32)),
            _ => Err(self.invalid(key, value, "two numbers [lowest, highest]")),
        }
    }

    pub fn invalid(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Invalid { key: format!("{}{key}", self.within), found: show(found), expected: expected.to_owned() }
    }

    pub fn unsupported(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Unsupported {
            key: format!("{}{key}", self.within),
            found: show(found),
            expected: expected.to_owned(),
        }
    }
}

/// A number that is whole and not negative, also spelled as `4.0`.
pub fn whole_number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64))
}

/// A number, also infinite or NaN as `{"__float__": "Infinity"}`.
pub fn float(value: &Value) -> Option<f64> {
    match value.get("__float__").and_then(Value::as_str) {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        Some(_) => None,
        None => value.as_f64(),
    }
}

/// The value as it reads in the file, cut where it is long.
pub fn show(value: &Value) -> String {
    let text = match value.get("__float__").and_then(Value::as_str) {
        Some(word) => word.to_owned(),
        None => value.to_string(),
    };
    if text.chars().count() <= 80 { text } else { text.chars().take(79).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_floats_become_json_outside_strings_only() {
        let text = r#"{"a": [0.0, Infinity, -Infinity,NaN], "b": "Infinity \" NaN", "c\\": Infinity, "é": "\\"}"#;
        let value: Value = serde_json::from_str(&json_from_python(text)).unwrap();
        let a: Vec<f64> = value["a"].as_array().unwrap().iter().map(|x| float(x).unwrap()).collect();
        assert_eq!(a[..3], [0.0, f64::INFINITY, f64::NEG_INFINITY]);
        assert!(a[3].is_nan());
        assert_eq!(value["b"], r#"Infinity " NaN"#);
        assert_eq!(float(&value["c\\"]), Some(f64::INFINITY));
        assert_eq!(value["é"], "\\");
        for broken in ["\"\\", "\"\\é", "Inf", ""] {
            json_from_python(broken);
        }
    }
}
