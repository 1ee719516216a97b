//! A file as bytes, mapped: read by the kernel page by page, shared between processes.

use std::{fs::File, io, ops::Deref, path::Path};

/// A read-only mapped file.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the whole file. Do not truncate it while it is mapped: reads beyond its end would stop the process.
    pub fn open(path: impl AsRef<Path>) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value. Another process that rewrites the file can change what is read, as
        // with any read of a file; every reader checks what it parses, and no reference to it outlives the map.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written() {
        let path = std::env::temp_dir().join(format!("statescope-mmap-{}", std::process::id()));
        std::fs::write(&path, b"state").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"state");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(MappedFile::open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
