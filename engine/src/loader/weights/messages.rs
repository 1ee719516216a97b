//! What to say of damaged files and missing tensors.

/// What is wrong with a file, in words that say what to do.
pub fn explain(error: &safetensors::SafeTensorError, file_len: usize) -> String {
    use safetensors::SafeTensorError as E;
    let cut = "the file is cut off or no safetensors file, download it again";
    match error {
        E::HeaderTooSmall => format!("it has {file_len} bytes, fewer than a header; {cut}"),
        E::HeaderTooLarge | E::InvalidHeaderLength => {
            format!("its header would end beyond its {file_len} bytes; {cut}")
        }
        E::MetadataIncompleteBuffer => format!("its tensors do not fill its {file_len} bytes exactly; {cut}"),
        E::InvalidOffset(tensor) => {
            format!("the place of tensor {tensor} overlaps another or leaves a gap; download it again")
        }
        E::TensorInvalidInfo => "the size of a tensor does not fit its shape; download it again".to_owned(),
        other => format!("{other}; download it again"),
    }
}

/// Up to three names that differ least from `name`.
pub fn closest(name: &str, names: &[&str]) -> Vec<String> {
    const LONGEST: usize = 256;
    let mut ranked: Vec<(usize, &str)> = names
        .iter()
        .filter(|other| other.len() <= LONGEST && name.len() <= LONGEST)
        .map(|&other| (edit_distance(name.as_bytes(), other.as_bytes()), other))
        .filter(|&(distance, other)| distance <= name.len().max(other.len()) / 2)
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(3).map(|(_, other)| other.to_owned()).collect()
}

/// Levenshtein distance.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
