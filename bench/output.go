package main

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// printed is how much the task of the output workload prints, in bytes.
const printed = 10 << 30

// output measures a task that prints much more than is kept.
func output(e *env) (map[string]float64, error) {
	n := e.size(printed, 1<<30)
	doc, err := document(map[string][]string{}, map[string]task{"prints": {
		"job": map[string]any{"command": []string{"head", "-c", fmt.Sprint(n), "/dev/zero"}}, "parents": []string{}}})
	if err != nil {
		return nil, err
	}
	warm, err := fan(1, trueProgram)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	took, err := e.timeOf(warm, doc, 5*time.Millisecond, func(s *servertest.Server) error {
		kept, err := used(filepath.Join(s.Config().Data, "output"))
		values[outputKept] = float64(kept) / 1e6
		return err
	})
	values[outputRate] = float64(n) / 1e6 / took.Seconds()
	return values, err
}

// The metrics of the output workload.
const (
	outputRate = "printed"
	outputKept = "kept on disk"
)

// used is the size of all files in a folder, in bytes.
func used(dir string) (sum int64, _ error) {
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
