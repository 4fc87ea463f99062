"""Names of settings in TRL, Axolotl, LLaMA-Factory, verl, ms-swift and Transformers, and their equivalents here.

Sources: TRL's `SFTConfig`, `GKDConfig` and Transformers' `TrainingArguments`; Axolotl's configuration reference;
LLaMA-Factory's `hparams`. A value is a dotted key of a recipe, or says what is done instead.
"""

_BATCHING = "training.batching.examples_per_batch, and examples_per_step, which is micro-batch x accumulation x ranks"
_TOKENS = "training.batching: {kind: tokens, tokens_per_batch: N}"
_CUT = "data.max_tokens, which leaves longer traces out, or cut: {kind: budget, num_tokens: N}, which cuts them"
_FORMAT = "formats are recognised by their columns; name them in data.train.columns, or data.train.format"
_EXACT = "not used: attention over packed examples is exact and needs no switch; see student.attention"

_OTHER_NAMES_OF = {
    # what is trained, and from what
    "student.path": "model_name_or_path model_name base_model model",
    "student.revision": "model_revision",
    "teacher.path": "teacher_model teacher_model_name_or_path",
    "tokenizer": "tokenizer_config tokenizer_name tokenizer_name_or_path",
    "not used: the class of a tokenizer is that of its files": "tokenizer_type",
    "student.attention": "attn_implementation flash_attention flash_attn",
    "not used: code of a model directory is never run": "trust_remote_code",
    # data
    "data.train.path": "dataset datasets dataset_name dataset_path train_file train_files train_dataset dataset_dir",
    "data.train.subset": "dataset_config",
    "data.train.split": "dataset_train_split",
    _FORMAT: "dataset_text_field messages type",
    "data.num_train": "max_samples max_examples",
    "data.validation.share": "val_size val_set_size",
    "data.validation: {kind: source, source: {path: ...}}": "eval_dataset test_datasets val_files val_dataset",
    _CUT: "max_length max_seq_length max_seq_len sequence_len cutoff_len max_prompt_length",
    "data.rendering.chat_template": "chat_template template",
    "data.num_workers": "dataset_num_proc dataset_processes preprocessing_num_workers",
    "training.num_workers": "dataloader_num_workers",
    "data.cache_dir": "dataset_prepared_path",
    "not used: a changed input is prepared anew": "overwrite_cache",
    "supervision.prompt": "train_on_inputs train_on_prompt assistant_only_loss completion_only_loss",
    "not used: of a conversation the last reply alone is learnt": "mask_history",
    # steps and batches
    "training.epochs": "num_train_epochs num_epochs total_epochs",
    "training.steps": "max_steps total_training_steps",
    _BATCHING: "per_device_train_batch_size train_batch_size batch_size micro_batch_size gradient_accumulation_steps",
    "validation uses training.batching; evaluation has evaluation.sampling.batch_size": "per_device_eval_batch_size",
    _TOKENS: "packing sample_packing padding_free eval_sample_packing neat_packing",
    _EXACT: "pad_to_sequence_len",
    # optimiser
    "training.learning_rate": "lr",
    "training.schedule": "lr_scheduler lr_scheduler_type lr_scheduler_kwargs",
    "training.warmup_share": "warmup_ratio",
    "training.warmup_share, a share of the steps": "warmup_steps",
    "training.betas": "adam_beta1 adam_beta2",
    "not used: the optimiser is AdamW; see training.learning_rate, weight_decay and betas": "optim optimizer",
    "training.max_grad_norm": "gradient_clipping",
    "training.precision: bfloat16": "bf16 fp16",
    "training.precision: float32": "fp32",
    "training.precision": "torch_dtype dtype",
    "not used: logits are never formed whole": "use_liger_kernel enable_liger_kernel",
    "not used: what Axolotl has as plugins is built in": "plugins",
    "start with torchrun; a prediction of the cost has plan.sharding": "fsdp fsdp_config n_gpus_per_node",
    "not used: start with torchrun; a prediction of the cost has plan.sharding": "deepspeed",
    # adapters
    "training.lora": "adapter finetuning_type use_peft peft_config tuner_type train_type",
    "training.lora.r": "lora_r lora_rank",
    "training.lora.alpha": "lora_alpha",
    "training.lora.dropout": "lora_dropout",
    "training.lora.target_modules": "lora_target lora_target_modules",
    "training.lora.target_modules: all-linear": "lora_target_linear",
    "student.quantization: bitsandbytes_4bit": "load_in_4bit",
    "student.quantization: bitsandbytes_8bit": "load_in_8bit",
    # loss
    "rollout: the student's own samples; their share is 1 less rollout.trace_share": "lmbda",
    "loss.divergence: {kind: jensen_shannon, beta: 0.5}": "beta",
    "not used: without a teacher a recipe trains on its traces alone; see loss.kl_weight": "seq_kd",
    "not used: a recipe with a teacher distils; see loss.kl_weight": "kd_trainer",
    "loss.kl_weight": "alpha kd_alpha kd_ce_alpha",
    "loss.kl_weight; the cross-entropy gets the rest": "sft_alpha",
    "loss.divergence, or the weights of supervision": "loss_type",
    "loss.temperature": "kd_temperature",
    # runs, logs, checkpoints
    "output": "output_dir",
    "name": "run_name wandb_name experiment_name",
    "training.log_every": "logging_steps",
    "training.checkpoint_every": "save_steps saves_per_epoch",
    "training.num_validations, of the whole run": "eval_steps evals_per_epoch eval_strategy",
    "training.keep_checkpoints; of a run that is not finished the last and the best stay": "save_total_limit",
    "training.keep: best": "load_best_model_at_end",
    "the option --resume of `leadspan distill`": "resume_from_checkpoint",
    "not used: `leadspan distill` trains, then evaluates": "do_train",
    "not used: `leadspan distill` trains, then evaluates the tasks of evaluation.tasks": "do_eval",
    "not used: `leadspan distill` is the only stage": "stage",
    "not used: a finished run is never replaced; give another output": "overwrite_output_dir",
    "not used: losses are in metrics.jsonl; see training.report_to": "plot_loss",
    "not used: start with torchrun": "ddp_timeout",
    "push: NAME, once the run is finished": "push_to_hub",
    "push": "hub_model_id",
    "training.report_to: [wandb]": "wandb_project use_wandb project_name",
    "data.rendering.end_of_turn": "special_tokens",
    # evaluation
    "evaluation.sampling.max_new_tokens": "max_new_tokens",
    "rollout.max_new_tokens": "max_completion_length max_response_length",
    "rollout.samples_per_prompt": "num_generations",
    "rollout.engine: {kind: vllm}": "use_vllm",
    "rollout: what the student writes in training (docs/on_policy.md)": "actor_rollout_ref rlhf_type algorithm",
    "not used: the sections training, evaluation and plan have what a trainer section has": "trainer",
    "evaluation.sampling.samples_per_problem": "num_return_sequences",
}
_OTHER_VALUES_OF = {
    "bfloat16": "bf16 fp16 float16 half torch.bfloat16 torch.float16",
    "float32": "fp32 no full torch.float32",
    "messages": "sharegpt chatml chat conversation conversations chat_template openai",
    "prompt_response": "alpaca completion input_output instruction prompt_completion",
    "cosine": "cosine_with_restarts cosine_with_min_lr",
    "constant": "constant_with_warmup",
    "flash_attention_2": "flash_attn flash_attn_2 fa2",
    "lead": "left prefix",
    "tail": "right suffix",
    "forward_kl": "kl kld fkl kl_divergence",
    "reverse_kl": "rkl",
    "jensen_shannon": "js jsd gjs gkd",
}
OTHER_VALUES = {value: here for here, values in _OTHER_VALUES_OF.items() for value in values.split()}
"""Value of a choice in another program, in lower case, to its equivalent here."""
OTHER_NAMES = {name: here for here, names in _OTHER_NAMES_OF.items() for name in names.split()}
"""Setting of another program, in lower case with underscores, to its equivalent here."""
