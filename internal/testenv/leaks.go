package testenv

import "go.uber.org/goleak"

// VerifyNoLeaks runs the tests of a package and fails if a goroutine is left. It ignores the
// goroutines that fasthttp keeps after a server has stopped: they sleep for up to 10 s and only then
// see the stop.
func VerifyNoLeaks(m goleak.TestingM, ignored ...goleak.Option) {
	goleak.VerifyTestMain(m, append(ignored,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
	)...)
}
