use super::*;

#[test]
fn shape_must_fit() {
    assert!(Matrix::new(2, 3, Elements::F32(vec![0.0; 6])).is_ok());
    let error = Matrix::new(2, 3, Elements::F32(vec![0.0; 5])).unwrap_err();
    assert_eq!(error.to_string(), "2 × 3 matrix needs 6 elements, got 5");
    assert!(Matrix::new(usize::MAX, 2, Elements::F32(vec![])).is_err());
}

#[test]
fn dtypes_round_trip() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let m = Matrix::new(3, 5, Elements::F32((0..15).map(|i| i as f32 * 0.25).collect())).unwrap().to_dtype(dtype);
        assert_eq!((m.dtype(), m.bytes()), (dtype, 3 * dtype.row_bytes(5)));
        let mut row = [f32::NAN; 5];
        m.copy_row(2, &mut row);
        assert_eq!(row, [2.5, 2.75, 3.0, 3.25, 3.5]);
        assert_eq!(m.values().first_not_finite(), None);
    }
    for dtype in Dtype::ALL {
        assert_eq!(dtype.to_string().parse(), Ok(dtype));
    }
    assert!("q4".parse::<Dtype>().is_err());
}

#[test]
fn sees_what_is_not_finite() {
    let m = Matrix::new(1, 2, Elements::F32(vec![1.0, 1e30])).unwrap();
    assert_eq!(m.clone().to_dtype(Dtype::Bf16).values().first_not_finite(), None);
    assert_eq!(m.to_dtype(Dtype::F16).values().first_not_finite(), Some(1));
}

#[test]
fn rows_and_columns_can_be_picked() {
    let m = Matrix::new(3, 2, Elements::F32(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
    assert_eq!(m.pick_rows(&[2..3, 0..1]).to_vec_f32(), [4.0, 5.0, 0.0, 1.0]);
    let both = Matrix::stacked(&[m.pick_rows(&[1..2, 0..1]), m.clone()]);
    assert_eq!((both.rows(), both.to_vec_f32()[..5].to_vec()), (5, vec![2.0, 3.0, 0.0, 1.0, 0.0]));
    assert_eq!(m.transposed().to_vec_f32(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!((m.transposed().rows(), m.transposed().cols()), (2, 3));
}

#[test]
fn a_mapped_matrix_reads_its_file() {
    let path = std::env::temp_dir().join(format!("statescope-matrix-{}", std::process::id()));
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(&path, bytes).unwrap();
    let file = Arc::new(MappedFile::open(&path).unwrap());
    let m = Matrix::mapped(2, 2, Dtype::F32, &file, 4..20).unwrap().unwrap();
    assert_eq!(m.to_vec_f32(), [2.0, 3.0, 4.0, 5.0]);
    let second = 1..2;
    assert_eq!(m.pick_rows(std::slice::from_ref(&second)).to_vec_f32(), [4.0, 5.0]);
    assert!(Matrix::mapped(2, 2, Dtype::F32, &file, 2..18).unwrap().is_none(), "not aligned");
    assert!(Matrix::mapped(3, 2, Dtype::F32, &file, 0..24).is_err(), "beyond the end");
    std::fs::remove_file(&path).unwrap();
}

/// Rows of 37: a whole block and one that is filled up.
fn quantised() -> (Matrix, Matrix) {
    let m = Matrix::new(3, 37, Elements::F32((0..111).map(|i| (i * 29 % 111) as f32 / 55.0 - 1.0).collect())).unwrap();
    (m.clone(), m.to_dtype(Dtype::Q8))
}

#[test]
fn q8_keeps_rows_apart() {
    let (exact, q8) = quantised();
    assert_eq!((q8.dtype(), q8.bytes()), (Dtype::Q8, 3 * 2 * 34));
    let all = q8.to_vec_f32();
    for (w, q) in exact.to_vec_f32().iter().zip(&all) {
        assert!((w - q).abs() <= 0.5 / 127.0 + 1e-4, "{w} became {q}");
    }
    let mut row = [f32::NAN; 37];
    q8.copy_row(2, &mut row);
    assert_eq!(row, all[74..]);
    assert_eq!(q8.pick_rows(&[2..3, 0..1]).to_vec_f32(), [&all[74..], &all[..37]].concat());
    assert_eq!((q8.transposed().dtype(), q8.transposed().rows()), (Dtype::F32, 37));
    assert_eq!(q8.transposed().transposed().to_vec_f32(), all);
    assert_eq!(
        q8.clone().to_dtype(Dtype::F32).to_dtype(Dtype::Q8).to_vec_f32(),
        all,
        "quantising again changes nothing"
    );
    assert_eq!(q8.values().at(64 + 3), all[37 + 3]);
}

#[test]
fn q8_can_stay_in_its_file() {
    let (_, q8) = quantised();
    let Values::Q8(blocks) = q8.values() else { panic!("not q8") };
    let path = std::env::temp_dir().join(format!("statescope-q8-{}", std::process::id()));
    std::fs::write(&path, [&[7u8, 7], cast_slice::<_, u8>(blocks)].concat()).unwrap();
    let file = Arc::new(MappedFile::open(&path).unwrap());
    let mapped = Matrix::mapped(3, 37, Dtype::Q8, &file, 2..2 + 204).unwrap().unwrap();
    assert_eq!(mapped.to_vec_f32(), q8.to_vec_f32());
    let last = 1..3;
    assert_eq!(mapped.pick_rows(std::slice::from_ref(&last)).to_vec_f32(), q8.to_vec_f32()[37..]);
    assert!(Matrix::mapped(3, 37, Dtype::Q8, &file, 2..2 + 203).is_err(), "not whole blocks");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_would_overflow_is_found() {
    let m = Matrix::new(1, 4, Elements::F32(vec![65519.0, 65520.0, 1e7, 3.4e38])).unwrap();
    let found: Vec<_> = Dtype::ALL.map(|dtype| m.values().first_beyond(dtype)).to_vec();
    assert_eq!(found, [None, Some(3), Some(1), Some(2)]);
    assert!(Dtype::ALL.iter().all(|d| f16::from_f32(1.0).to_f32() <= d.largest()));
    assert!(
        bf16::from_f32(Dtype::Bf16.largest()).is_finite()
            && !bf16::from_f32(Dtype::Bf16.largest().next_up()).is_finite()
    );
    assert!(
        f16::from_f32(Dtype::F16.largest()).is_finite() && !f16::from_f32(Dtype::F16.largest().next_up()).is_finite()
    );
}
