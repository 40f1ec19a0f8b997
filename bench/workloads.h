/* The workloads of ftbench. Each takes its arguments, argv[0] being its name, and returns the exit status. */
#ifndef FTVMM_BENCH_WORKLOADS_H
#define FTVMM_BENCH_WORKLOADS_H

int history_main(int argc, char **argv);
int channel_main(int argc, char **argv);
int guest_main(int argc, char **argv);
int net_main(int argc, char **argv);
int overhead_main(int argc, char **argv);
int failover_main(int argc, char **argv);
int determinism_main(int argc, char **argv);
int sim_main(int argc, char **argv);
int compare_main(int argc, char **argv);
int report_main(int argc, char **argv);

#endif
