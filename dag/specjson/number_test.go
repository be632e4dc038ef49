package specjson

import (
	"math/big"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

func TestParseDecimal(t *testing.T) {
	for _, c := range []struct {
		text   string
		places int
		want   int64
		v      parseResult
	}{
		{"0", 3, 0, isNumber}, {"-0", 3, 0, isNumber}, {"1", 3, 1000, isNumber}, {"0.1", 3, 100, isNumber}, {"4.35", 3, 4350, isNumber},
		{"1e3", 3, 1_000_000, isNumber}, {"1.5E+1", 3, 15_000, isNumber}, {"15e-1", 3, 1500, isNumber}, {"0.0000001", 3, 1, isNumber},
		{"0.3333333333333333333333333333333333333", 3, 334, isNumber}, {"0.1250000000000000", 3, 125, isNumber}, {"1.0001", 3, 1001, isNumber},
		{"1e-999999999999999999999999", 3, 1, isNumber}, {"0e999999999999999999999999", 3, 0, isNumber}, {"0.000e5", 3, 0, isNumber},
		{"1000000000", 3, 1_000_000_000_000, isNumber}, {"1000000000", 9, 1_000_000_000_000_000_000, isNumber}, {"1e9", 9, 1_000_000_000_000_000_000, isNumber},
		{"1000000000.0000000001", 9, 0, outOfRange}, {"1000000001", 3, 0, outOfRange}, {"1e10", 9, 0, outOfRange}, {"1e999999999999999999999", 3, 0, outOfRange},
		{strings.Repeat("9", 100), 3, 0, outOfRange}, {"-1", 3, 0, outOfRange}, {"-1e-50", 3, 0, outOfRange}, {"-0.0", 3, 0, isNumber},
		{"", 3, 0, notNumber}, {"-", 3, 0, notNumber}, {"+1", 3, 0, notNumber}, {" 1", 3, 0, notNumber}, {"1 ", 3, 0, notNumber}, {"01", 3, 0, notNumber},
		{"1.", 3, 0, notNumber}, {".5", 3, 0, notNumber}, {"1e", 3, 0, notNumber}, {"1e+", 3, 0, notNumber}, {"e5", 3, 0, notNumber}, {"1.2.3", 3, 0, notNumber},
		{"1e5e5", 3, 0, notNumber}, {"1e5.5", 3, 0, notNumber}, {"0x10", 3, 0, notNumber}, {"NaN", 3, 0, notNumber}, {"Infinity", 3, 0, notNumber}, {"1_000", 3, 0, notNumber},
		{"٣", 3, 0, notNumber}, {"--1", 3, 0, notNumber}, {"500m", 3, 0, notNumber},
	} {
		if got, v := parseDecimal(c.text, c.places, 1_000_000_000); v != c.v || v == isNumber && got != c.want {
			t.Errorf("%.40s in 10^-%d: %d %d, want %d %d", c.text, c.places, got, v, c.want, c.v)
		}
	}
}

// Random numbers, against exact fractions.
func TestParseDecimalAgainstFractions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		text := strconv.FormatUint(r.Uint64()>>r.IntN(64), 10)
		if r.IntN(2) == 0 {
			text += "." + strings.Repeat("0", r.IntN(4)) + strconv.FormatUint(r.Uint64()>>r.IntN(64), 10)
		}
		if r.IntN(2) == 0 {
			text += "e" + strconv.Itoa(r.IntN(40)-20)
		}
		value, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatal(text)
		}
		value.Mul(value, big.NewRat(1000, 1))
		up := new(big.Int).Add(value.Num(), new(big.Int).Sub(value.Denom(), big.NewInt(1)))
		up.Quo(up, value.Denom())
		got, v := parseDecimal(text, 3, 1_000_000_000)
		if up.Cmp(big.NewInt(1_000_000_000_000)) > 0 {
			if v != outOfRange {
				t.Fatalf("%s: %d %d, want it out of range", text, got, v)
			}
		} else if v != isNumber || got != up.Int64() {
			t.Fatalf("%s: %d %d, want %s", text, got, v, up)
		}
	}
}
