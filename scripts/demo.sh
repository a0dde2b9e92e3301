#!/bin/sh
# Ask the demo checkpoint about real scans that pydicom's and nibabel's wheels bring, none of which it was trained on.
set -eu
bin=$(dirname "$0")/../.venv/bin
dicom=$("$bin/python" -c "import os, pydicom; print(os.path.join(os.path.dirname(pydicom.__file__), 'data', 'test_files'))")
nifti=$("$bin/python" -c "import os, nibabel; print(os.path.join(os.path.dirname(nibabel.__file__), 'tests', 'data'))")

ask() {
  scan=$1
  shift
  for question; do
    printf '\n$ radfm ask %s "%s"\n' "${scan##*/}" "$question"
    "$bin/radfm" ask "$scan" "$question" 2>/dev/null
  done
}

echo "A head CT, one slice (DICOM, JPEG 2000)"
ask "$dicom/693_J2KI.dcm" "Which imaging modality is this?" "Which body part is shown?" "Is this an MRI scan? Answer yes or no."
printf '\nAn abdominal MR, one slice (DICOM)\n'
ask "$dicom/examples_overlay.dcm" "Which imaging modality is this?" "Is this scan 2D or 3D?"
printf '\nA brain MR, a volume (NIfTI)\n'
ask "$nifti/example4d.nii.gz" "Which imaging modality is this?" "Which body part is shown?" "Is this scan 2D or 3D?"
printf '\nWhere it fails: a close-up crop of an MR, unlike anything it was trained on\n'
ask "$dicom/MR_small.dcm" "Which imaging modality is this?"
printf '\nA demonstration, no medical device: README.md says what it was trained on and how often it is wrong.\n'
