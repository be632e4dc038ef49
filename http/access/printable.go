package access

import (
	"fmt"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// AppendPrintable appends the JSON text to dst and escapes what a terminal would act on or
// hide: control and format characters (Cc, Cf), line and paragraph separators (Zl, Zp), and
// bytes that are not UTF-8. encoding/json and log/slog escape only those below U+0020. The
// value of the text stays the same, because such characters can stand only inside its
// strings. Line feeds stay: they separate documents.
func AppendPrintable(dst, text []byte) []byte {
	begin := 0 // of what is not yet in dst
	for i := 0; i < len(text); {
		if c := text[i]; c >= ' ' && c < 0x7f || c == '\n' {
			i++
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			dst = append(dst, text[begin:i]...)
			if high, low := utf16.EncodeRune(r); r > 0xffff {
				dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
			} else {
				dst = fmt.Appendf(dst, `\u%04x`, r)
			}
			begin = i + size
		}
		i += size
	}
	return append(dst, text[begin:]...)
}
