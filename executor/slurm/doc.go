// Package slurm is an executor.Durable: it has attempts carried out as jobs of a
// Slurm cluster, by sbatch, squeue and scancel.
//
// Each attempt has a folder, which the server and the cluster's nodes share:
//
//	DIR/<run>/<task>.<attempt>/
//	    run         how it is started: a script, written by the server
//	    job         name and array index of the job that it was submitted as
//	    begun       made by whoever comes first: the job, then the attempt has begun;
//	                or the server, then it never will
//	    out, err    what it prints
//	    grace       how long it has between SIGTERM and SIGKILL, when it is killed
//	    cause       why it was ended: "killed", "timed out"
//	    unstarted   what could not be started: "program", "folder"
//	    end         exit code and CPU time, written by the job
//	    verdict     the final report, written by the server before it is made
//	DIR/log/<job>   what Slurm itself says of a job
//	DIR/id          this folder's own name in the cluster
//
// That begun is made by one alone (O_EXCL), by the job that the folder names, is what
// keeps an attempt from starting twice: whatever is submitted twice, requeued, or
// comes late, finds it made, or another name, or no folder, and ends without doing
// anything. So an order that is given again after a restart (Order.Resume) is always
// decided: what was submitted is looked up by its name, and what Slurm does not know
// and has not begun is submitted again. What nobody gives again (ExpectResume, ResumeDone) is
// ended.
//
// One goroutine, the clerk (clerk.go), owns all that is known of attempts. Its duties,
// whenever something was asked for or the interval is over:
//
//  1. Do what was asked for: orders, kills, acknowledgements.
//  2. Submit what waits: orders of one run that are alike go together, as a job array.
//     One sbatch runs at a time, beside the clerk.
//  3. Ask for the state of all jobs at once, by one squeue per interval, and see what
//     has begun and what is over.
//  4. Have what is to end ended: the job's own script gets SIGUSR1, and ends the
//     attempt's process group with the attempt's grace. What does not heed that is
//     cancelled by Slurm's own means.
//
// What is over is collected beside the clerk: its output goes into the store, its
// verdict into the folder, and then it is reported. A folder is removed once its end
// is acknowledged.
//
// Locks: Slurm.mu guards what is asked for and the attempts whose output may be read;
// it is held over no I/O.
package slurm
