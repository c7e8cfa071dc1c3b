"""`python convert.py LLAMA_CPP FOLDER OUTTYPE OUTFILE`: llama.cpp's converter on our tokenizer.

The converter knows tokenizers by a hash and refuses others. Which rule it declares does not matter
here, because token ids are passed and never text; it must only be one that llama.cpp knows.
"""

import runpy
import sys


def main() -> None:
    llama_cpp, folder, outtype, outfile = sys.argv[1:]
    sys.path[:0] = [llama_cpp, f"{llama_cpp}/gguf-py"]
    import conversion.base  # type: ignore[import-not-found]  # the converter's own package

    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    sys.argv = ["convert", folder, "--no-mtp", "--outtype", outtype, "--outfile", outfile]
    runpy.run_path(f"{llama_cpp}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    main()
